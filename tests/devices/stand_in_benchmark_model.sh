#!/bin/sh
# Stands in for TFLite's benchmark_model: its flags and its output, with times made up. They follow
# from the graph's size, and grow by `slower` percent of it from run to run.
here=$STAND_IN
new=yes
slower=0
prints=
code=0
signal=
hang=
operators=
table=
. "$here/behaviour"

for word in "$@"; do
    case $word in
    --graph=*) graph=${word#*=} ;;
    --num_threads=[0-9]* | --use_xnnpack=true) ;;
    --warmup_runs=*) warm_up=${word#*=} ;;
    --warmup_min_secs=*) warm_up_seconds=${word#*=} ;;
    --num_runs=*) runs=${word#*=} ;;
    --min_secs=*) seconds=${word#*=} ;;
    --enable_op_profiling=true) operators=yes ;;
    --report_peak_memory_footprint=*) memory=${word#*=} ;;
    *)
        echo "Unconsumed cmdline flags: $word" >&2
        exit 97
        ;;
    esac
done
printf '%s|' "$@" >>"$here/runs"
echo >>"$here/runs"
[ "$hang" ] && exec sleep 60
if [ "$prints" ]; then
    cat "$here/prints"
    exit "$code"
fi
[ "$signal" ] && kill -"$signal" $$

say() { printf '%s\n' "${new:+INFO: }$*" >&2; }
spread() {
    if [ "$1" -eq 1 ]; then
        say "count=1 curr=$((us + 9))"
    else
        line="count=$1 first=$((us + 9)) curr=$us min=$((us - 3)) max=$((us + 9))"
        say "$line avg=$((us + 1)).5 std=4${new:+ p5=$((us - 2)) median=$us p95=$((us + 8))}"
    fi
    echo >&2
}

us=$(wc -c <"$graph")
us=$((us + us * slower * $(wc -l <"$here/runs") / 100))
say STARTING!
say 'Log parameter values verbosely: [0]'
say "Graph: [$graph]"
say "Loaded model $graph"
say 'Created TensorFlow Lite XNNPACK delegate for CPU.'
say 'The input model file size (MB): 4.2761'
say 'Initialized session in 87.639ms.'
limit='seconds but terminate if exceeding 150 seconds.'
say "Running benchmark for at least $warm_up iterations and at least $warm_up_seconds $limit"
spread "$warm_up"
say "Running benchmark for at least $runs iterations and at least $seconds $limit"
spread "$runs"
say "Inference timings in us: Init: 87639, First inference: $((us + 9)), Warmup (avg): $us, Inference (avg): $us"
say 'Note: as the benchmark tool itself affects memory footprint, the following is only APPROXIMATE to the actual memory footprint of the model at runtime. Take the information at your discretion.'
say 'Memory footprint delta from the start of the tool (MB): init=5 overall=11.25'
[ "$memory" = true ] && say 'Overall peak memory footprint (MB) via periodic monitoring: 93.25'
[ "$operators" ] && [ "$table" ] && cat "$here/$table"
exit 0
