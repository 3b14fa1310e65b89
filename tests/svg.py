"""What is in an .svg file that was drawn."""

import re
import xml.etree.ElementTree as ET

SVG = "{http://www.w3.org/2000/svg}"


def texts(path):
    """Every text in an .svg file, in the order it was drawn."""
    return ["".join(element.itertext()) for element in ET.parse(path).iter(f"{SVG}text")]


def widths(path, colour):
    """Widths of the filled rectangles of a colour, top to bottom."""
    found = []
    for element in ET.parse(path).iter(f"{SVG}path"):
        if f"fill: {colour}" in element.get("style", ""):
            points = re.findall(r"[ML] ([\d.]+) ([\d.]+)", element.get("d"))
            across, down = zip(*[map(float, point) for point in points], strict=True)
            found.append((min(down), max(across) - min(across)))
    return [width for _, width in sorted(found, key=lambda item: item[0])]
