#!/bin/sh
# Stands in for adb and the device behind it: the few commands used, and what they print.
# The formats are those of adb 34 and Android 14, taken from public logs. A file `behaviour`
# beside this one says what to do differently.
here=${0%/*}
devices="R58	device"
full=
gone_after=
. "$here/behaviour"

printf '%s|' "$@" >>"$here/log"
echo >>"$here/log"
if [ "$*" = devices ]; then
    printf 'List of devices attached\n%s\n\n' "$devices"
    exit 0
fi
[ "$1" = -s ] && shift 2
if [ "$gone_after" ] && [ "$(wc -l <"$here/log")" -gt "$gone_after" ]; then
    echo "adb: device 'R58' not found" >&2
    exit 1
fi
case $1 in
push)
    case $full$2 in
    yes*.tflite)
        echo "adb: error: failed to copy '$2' to '$3': remote No space left on device"
        echo "$2: 0 files pushed. 5.2 MB/s (99 bytes in 0.1s)"
        exit 1
        ;;
    esac
    cp -- "$2" "$3" && echo "$2: 1 file pushed, 0 skipped. 1649.7 MB/s (37728 bytes in 0.000s)"
    ;;
shell)
    # Several words would be joined by blanks, which the shell there splits anew.
    [ $# -eq 2 ] || exit 99
    PATH=$here/device:$PATH exec sh -c "$2"
    ;;
*) exit 98 ;;
esac
