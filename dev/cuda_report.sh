#!/usr/bin/env bash
# cuda_report.sh FOLDER: `make cuda-report`: what can be known of every kernel without a GPU, and the bars it must keep. FOLDER: the emulated build's.
#   from ptxas and the machine code, for sm_80 and sm_90a   registers, shared memory, spills, instructions of tensor cores (HMMA; of kernels for sm_90a alone HGMMA), ldmatrix (LDSM) and
#                                 cp.async (LDGSTS) in the code, blocks that fit a multiprocessor and the share of its threads that they are
#   from the PTX as it runs in the emulator (report.c)   bytes moved over bytes needed, sectors of 32 bytes a request, wavefronts of shared memory over
#                                 those without bank conflicts, tensor-core work over the arithmetic needed
# Needs nvcc. FOLDER/report.tsv has the table. Exit 1: a bar is missed. Not seen here: anything about time; that needs a GPU (dev/gpu_check.sh).
set -u
folder=$(cd "$1" && pwd) || exit 1
nvcc=$(command -v nvcc || ls /usr/local/cuda/bin/nvcc 2> /dev/null) || { echo "cuda-report: there is no nvcc, which makes the machine code to be counted"; exit 1; }
cd "$(dirname "$0")/.." || exit 1

compile() {   # arch: FOLDER/report.ARCH.log and .sass
  "$nvcc" -std=c++17 -O3 -fmad=false -I. -arch="$1" -cubin -Xptxas -v -o "$folder/report.$1.cubin" train_gpt.cu > "$folder/report.$1.raw" 2>&1 || { cat "$folder/report.$1.raw"; return 1; }
  # kernel, registers, shared bytes, bytes of spills
  c++filt < "$folder/report.$1.raw" | awk '/Compiling entry function/ { sub(/.*function ./, ""); sub(/. for .sm_.*/, ""); kernel = $0 }
    /bytes spill stores/ { spills = $5 + $9 } /Used [0-9]+ registers/ { match($0, /[0-9]+ bytes smem/); print kernel "\t" $5 "\t" (RLENGTH > 0 ? substr($0, RSTART, RLENGTH) + 0 : 0) "\t" spills }' > "$folder/report.$1.log"
  "$folder/sass" "$folder/report.$1.cubin" | c++filt > "$folder/report.$1.sass"
}
run() {   # bf16, wgmma or fp32, and the PTX's arch: FOLDER/report.bf16.tsv and .needed ...
  OMP_NUM_THREADS=1 GPT_CUDA_PTX=$folder/train_gpt.$2.ptx GPT_CUDA_PROFILE=$folder/report.$1.tsv "$folder/report" "$1" > "$folder/report.$1.needed" 2> "$folder/report.$1.err" || { cat "$folder/report.$1.err"; return 1; }
}
compile sm_80 & one=$!
compile sm_90a & two=$!
run bf16 sm_80 && run fp32 sm_80 && run wgmma sm_90a || exit 1
wait $one && wait $two || exit 1

cat "$folder/report.bf16.needed" "$folder/report.fp32.needed" > "$folder/report.needed"
tail -q -n +2 "$folder/report.bf16.tsv" "$folder/report.fp32.tsv" > "$folder/report.ran"
tail -q -n +2 "$folder/report.wgmma.tsv" | grep '128, true, true>' >> "$folder/report.ran"   # the others have run
# ptxas says where it has each wgmma wait for the one before
waiting=$(c++filt < "$folder/report.sm_90a.raw" | grep 'C75' | grep -c "in the function 'void") wgmmas=$(c++filt < "$folder/report.sm_90a.raw" | grep -c 'Compiling entry function.*128, true, true>')
awk -F '\t' -v folder="$folder" -v waiting="$waiting" -v wgmmas="$wgmmas" '
  # shares of a multiprocessor: 65,536 registers, given to a warp in pieces of 256; shared memory and 1 KiB a block; 2,048 threads, 32 blocks (CUDA C++ Programming Guide, table of compute capabilities)
  function blocks(registers, shared, threads, most_shared,   warps, fit, b) {
    warps = int((threads + 31) / 32); fit = 32
    b = int(2048 / (warps * 32)); if (b < fit) fit = b
    b = int(65536 / (int((registers * 32 + 255) / 256) * 256 * warps)); if (b < fit) fit = b
    b = int(most_shared * 1024 / (int((shared + 127) / 128) * 128 + 1024)); if (b < fit) fit = b
    return fit
  }
  function ratio(a, b) { return b > 0 ? sprintf("%.3f", a / b) : "-" }
  function miss(what, found) { if (found > 0) missed++; bars[++bar_count] = (found > 0 ? "FAILED  " : "ok      ") what }
  FILENAME ~ /\.log$/ { arch = FILENAME ~ /sm_80/ ? 80 : 90; if (!($1 in seen)) order[++count] = $1; seen[$1] = 1; registers[$1, arch] = $2; shared[$1, arch] = $3; spills[$1, arch] = $4; next }
  FILENAME ~ /\.sass$/ { if (FNR > 1) { arch = FILENAME ~ /sm_80/ ? 80 : 90; hmma[$1, arch] = $3; ldsm[$1, arch] = $4; ldgsts[$1, arch] = $5; local[$1] += $6 + $7 } next }
  FILENAME ~ /\.needed$/ { needed[$1] = $2; next }
  FILENAME ~ /\.ran$/ { ran[$1] = 1; need[$1] += $3; moved[$1] += $4; requests[$1] += $5; sectors[$1] += $6; ideal[$1] += $7; wave[$1] += $9; wave_ideal[$1] += $10; mma[$1] += $11; threads[$1] = $14; dynamic[$1] = $15 }
  END {
    header = "kernel\tregisters 80\t90a\tshared\tspills\tblocks 80\t90a\toccupancy 80\t90a\tHMMA\tLDSM\tLDGSTS\tmoved/needed\tsectors\tat best\tconflicts\twork/needed"
    print header > (folder "/report.tsv")
    print header
    for (i = 1; i <= count; i++) {
      k = order[i]; name = k; sub(/^void /, "", name); short = name; sub(/\(((Gemm|float|double|__nv|Sorted|uint4|int|TensorEntry|Norm).*)$/, "", short)
      gsub(/\(Direction\)0/, "FORWARD", short); gsub(/\(Direction\)1/, "BACKWARD_INPUT", short); gsub(/\(Direction\)2/, "BACKWARD_WEIGHT", short)
      gsub(/\(Activation\)0/, "NONE", short); gsub(/\(Activation\)1/, "GELU", short); gsub(/\(Activation\)2/, "SWIGLU", short); gsub(/__nv_bfloat16/, "bf16", short)
      spilled += spills[k, 80] + spills[k, 90] + local[k] > 0
      work = "-"
      for (p in needed) if (index(name, p) == 1 && ran[k]) { work = ratio(mma[k] * 4096, needed[p]); work_seen++; if (!(mma[k] * 4096 <= 1.02 * needed[p])) { too_much++; why_work = why_work " " short } }
      product = name ~ /^(gemm_bf16_kernel|gemm_float_kernel|flash_|attention_(forward|backward))/
      conflicts = ran[k] && wave_ideal[k] ? ratio(wave[k], wave_ideal[k]) : "-"
      if (product && ran[k]) { product_seen++; if (wave[k] > wave_ideal[k]) { conflicting++; why_conflict = why_conflict " " short } }
      # the sort and the sums of few parts are not streams: they go over a few kilobytes
      streaming = !product && ran[k] && name !~ /^(embedding_sort|norm_backward_sum|sum_kernel)/
      if (streaming) { streams++; if (!(moved[k] <= 1.05 * need[k])) { wasteful++; why_stream = why_stream " " short } }
      b80 = b90 = o80 = o90 = "-"
      if (ran[k]) {
        b80 = blocks(registers[k, 80], shared[k, 80] + dynamic[k], threads[k], 164); b90 = blocks(registers[k, 90], shared[k, 90] + dynamic[k], threads[k], 228)
        o80 = sprintf("%.0f%%", 100 * b80 * threads[k] / 2048); o90 = sprintf("%.0f%%", 100 * b90 * threads[k] / 2048)
      }
      wgmma = name ~ /128, true, true>/   # which is for sm_90a alone
      line = short "\t" registers[k, 80] "\t" registers[k, 90] "\t" shared[k, 80] + dynamic[k] "\t" spills[k, 80] + spills[k, 90] "\t" b80 "\t" b90 "\t" o80 "\t" o90 "\t" hmma[k, wgmma ? 90 : 80] "\t" ldsm[k, 80] "\t" ldgsts[k, 80] "\t" \
             (ran[k] ? ratio(moved[k], need[k]) : "-") "\t" (ran[k] ? ratio(sectors[k], requests[k]) : "-") "\t" (ran[k] ? ratio(ideal[k], requests[k]) : "-") "\t" conflicts "\t" work
      print line > (folder "/report.tsv")
      print line
    }
    print ""
    miss("registers: " spilled + 0 " of " count " kernels spill to local memory, on sm_80 or sm_90a", spilled)
    miss("shared memory: " conflicting + 0 " of " product_seen " matrix products and attention kernels have bank conflicts" why_conflict, conflicting + !product_seen)
    miss("global memory: " wasteful + 0 " of " streams " streaming kernels move more than 1.05 times the bytes needed" why_stream, wasteful + !streams)
    miss("tensor cores: " too_much + 0 " of " work_seen " kernels do more than 1.02 times the arithmetic needed" why_work, too_much + !work_seen)
    miss("wgmma: in " waiting " of " wgmmas " kernels products wait for each other", waiting + !wgmmas)
    for (i = 1; i <= bar_count; i++) print bars[i]
    printf "%d passed, %d failed\n", bar_count - missed, missed
    exit missed > 0
  }' "$folder"/report.sm_80.log "$folder"/report.sm_90a.log "$folder"/report.sm_80.sass "$folder"/report.sm_90a.sass "$folder/report.needed" "$folder/report.ran" > "$folder/report.txt"
code=$?
# columns of one width, but for the verdicts
awk -F '\t' 'NF > 1' "$folder/report.txt" | awk -F '\t' '{ printf "%-62s", $1; for (i = 2; i <= NF; i++) { if (NR == 1) width[i] = length($i); printf " %" (width[i] < 6 ? 6 : width[i]) "s", $i } print "" }'
awk -F '\t' 'NF <= 1' "$folder/report.txt"
exit $code
