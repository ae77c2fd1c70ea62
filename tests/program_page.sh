#!/usr/bin/env bash
# The pages of `meshwork graph` in a real browser: no console error, search, click, table, keys; hostile text stays text;
# 2,000 nodes; screenshots page_*.png in the build folder.
# $1: the build folder. Skipped (77) where there is no chromium.
# builds: release
# timeout: 600
# shellcheck source=tests/program_lib.sh
source "$(dirname "${BASH_SOURCE[0]}")/program_lib.sh"

browser=$(command -v chromium chromium-browser google-chrome google-chrome-stable | head -n 1)
[ -n "$browser" ] || { echo "skipped: no chromium (apt install chromium)" && exit 77; }

# browse FILE WORD...: leaves the document in dom, what the console said in console.
browse() {
    timeout --kill-after=5 120 "$browser" --headless=new --no-sandbox --disable-gpu --disable-dev-shm-usage --mute-audio \
        --no-first-run --user-data-dir="$work/profile" --enable-logging=stderr --v=0 --window-size=1500,950 \
        --virtual-time-budget=8000 "${@:2}" "$1" >dom 2>browser.err </dev/null
    grep 'CONSOLE' browser.err >console
}

# drive PAGE PLAN: the page with the driver behind it.
drive() {
    { sed '/<\/body>/,$d' "$1" && echo "<script>const plan = ${2//</\\u003c};" &&
        cat "$source_folder/tests/page_driver.js" && echo '</script></body></html>'; } >driven.html
    browse "file://$work/driven.html" --dump-dom
    checks=$((checks + 2))
    grep -q 'data-result="passed' dom || fail "$1: $(grep -o 'data-result="[^"]*"' dom || tail -n 3 browser.err)"
    [ ! -s console ] || fail "$1: the console says: $(head -n 3 console)"
}

screenshot() {
    browse "file://$work/$1#$2" --screenshot="$build/page_$3.png"
    checks=$((checks + 2))
    [ "$(stat -c %s "$build/page_$3.png" 2>/dev/null || echo 0)" -gt 20000 ] || fail "no screenshot of $1"
    [ ! -s console ] || fail "$1: the console says: $(head -n 3 console)"
}

# A page that fails must be seen to fail, or the rest proves nothing.
echo '<body><script>throw new Error("on purpose")</script>' >broken.html
browse "file://$work/broken.html" --dump-dom
if ! grep -q 'on purpose' console; then
    echo "skipped: $browser does not run here: $(tail -n 2 browser.err)"
    exit 77
fi

expect_good 0 graph "$golden/torch_logs/train.short.txt" -o train.html
drive train.html '{"nodes": 46, "search": "silu", "hits": 24, "node": "mul_2", "kernel": "triton_poi_fused_mul_silu_1",
    "details": ["torch.ops.aten.mul.Tensor", "f32[64, 512]", "prog.py:9", "triton_poi_fused_mul_silu_1", "tl.store", "mm_2"]}'
screenshot train.html 'tab=0&node=mul_2' graph
screenshot train.html 'tab=3&q=mm&view=table' table
browse "file://$work/train.html#tab=1&kernel=triton_per_fused_add_mul_sum_2" --screenshot="$build/page_dark.png" \
    --blink-settings=preferredColorScheme=0

# Kernels without a traced graph: the calls are drawn.
expect_good 0 graph "$golden/torch_logs/infercpu.prefix.txt" -o calls.html
drive calls.html '{"nodes": 10, "search": "extern_kernels.addmm", "hits": 1, "node": "buf4 = cpp_fused_mul_silu_1",
    "kernel": "", "details": ["128 KiB", "pragma omp", "buf4"]}'

# Text that would be markup.
cat >hostile.txt <<'LOG'
INFO:torch.x.__aot_graphs:TRACED GRAPH
 ===== Forward graph 0 =====
 </script><img src=x onerror=window.hacked=1> class GraphModule(torch.nn.Module):
    def forward(self, a: "<img src=x onerror=window.hacked=2>"):
        # File: </script><script>window.hacked=3</script>:7 in <b>, code: </script><img src=x onerror=window.hacked=4>
        evil: "</script><svg onload=window.hacked=5>" = torch.ops.aten.sin.default(a, "<!--<script>");  a = None
        return (evil,)

</script><img src=x onerror=window.hacked=6> printed by the program
DEBUG:torch.x.__output_code:Output code: 
# AOT ID: ['0_forward']
# Topologically Sorted Source Nodes: [</script><img src=x onerror=window.hacked=7>], Original ATen: [aten.sin]
# Graph fragment:
#   %evil : [num_users=1] = call_function[target=torch.ops.aten.sin.default](args = (%a,), kwargs = {})
triton_evil_0 = async_compile.triton('triton_evil_0', '''
def triton_evil_0(in_ptr0, out_ptr0, xnumel):
    </script><img src=x onerror=window.hacked=8>
''', device_str='cuda')
LOG
expect_good 0 graph hostile.txt -o hostile.html
drive hostile.html '{"nodes": 3, "search": "onerror=window.hacked=4", "hits": 1, "node": "evil", "kernel": "triton_evil_0",
    "details": ["</script><img src=x onerror=window.hacked=4>", "window.hacked=8", "window.hacked=7"]}'

# 2,000 nodes: written within 5 s, drawn and walked through within the time limit of `browse`.
{
    echo 'INFO:torch.x.__aot_graphs:TRACED GRAPH'
    echo ' ===== Forward graph 0 ====='
    echo ' class GraphModule(torch.nn.Module):'
    echo '    def forward(self, x0: "f32[8, 8][8, 1]cuda:0"):'
    awk 'BEGIN { for (i = 1; i < 2000; i++) {
        a = i - 1; b = int(i * 7 / 11)
        printf "        x%d: \"f32[8, 8][8, 1]cuda:0\" = torch.ops.aten.add.Tensor(x%d, x%d)\n", i, a, b } }'
    echo '        return (x1999,)'
} >large.txt
started=$(date +%s%N)
expect_good 0 graph large.txt -o large.html
elapsed_ms=$((($(date +%s%N) - started) / 1000000))
checks=$((checks + 1))
case $(grep -c asan <(ldd "$program")) in
0) [ "$elapsed_ms" -lt 5000 ] || fail "2,000 nodes took $elapsed_ms ms" ;;
esac
drive large.html '{"nodes": 2001, "search": "x1777", "hits": 2, "node": "x1999", "kernel": "",
    "details": ["torch.ops.aten.add.Tensor", "x1998"]}'
screenshot large.html 'node=x500' large

# Our own runs.
expect_good 2 dp2ep --mesh ep=2 --samples 5 -o r.h5
expect_good 0 graph r.h5 -o r.html
expect_text r.html 'forward/dispatch'
screenshot r.html 'tab=2&node=dispatch' run

echo "screenshots: $(ls "$build"/page_*.png | tr '\n' ' ')"
finish
