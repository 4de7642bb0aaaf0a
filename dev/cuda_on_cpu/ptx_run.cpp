// ptx_run.cpp: owns the interpreter: run the PTX that nvcc really produced, on the CPU.  With GPT_CUDA_PTX=file.ptx every launch of a kernel
// found in that file is interpreted instead of calling the host-compiled kernel.  So the inline assembly of ptx.cuh and
// nvcc's own code generation are tested too.  A warp runs in lock step: a register is 32 lanes; after a divergent
// branch the lanes with the lowest program counter go first, which reconverges them.
#include "emulator.h"
#include <cfenv>
#include <cmath>
#include <fstream>
#include <map>
#include <sstream>
#include <unordered_map>
using namespace cuemu;
namespace {
typedef uint64_t u64; typedef uint32_t u32;
enum Kind { NONE, REG, IMM, SREG, SYM, ADDR, VEC };
struct Opd { Kind k = NONE; int reg = -1; u64 imm = 0; std::string sym; std::vector<Opd> v; };
typedef void (*Exec)(struct Warp2 &, const struct Ins &, u32);
struct Ins {
    std::string op, text; std::vector<std::string> m;       // m: the parts of the opcode between dots
    int pred = -1; bool neg = false; std::vector<Opd> o; int target = -1;
    int code = 0, type = 0, type2 = 0, vec = 1, space = 0, cmp = 0; bool sgn = false, flt = false; int bits = 0;
};
struct Kernel { std::string name; std::vector<int> psize, poff; int pbytes = 0, nreg = 0; std::vector<Ins> ins; std::map<std::string, u64> shared; u64 shared_bytes = 0, local_bytes = 0; std::map<std::string, u64> local, param; };
std::map<std::string, Kernel> kernels;
std::map<std::string, bool> extern_shared;                    // names of dynamic shared memory

// ---- parser ------------------------------------------------------------------------------------
int size_of(const std::string &t) { return t == "pred" ? 1 : atoi(t.c_str() + 1 + (t[0] == 'b' && t[1] == 'f' ? 1 : 0)) / 8; }
struct Parser {
    Kernel *k; std::unordered_map<std::string, int> reg; std::map<std::string, int> label; std::map<std::string, std::pair<int, int>> range;
    Opd operand(std::string s) {
        while (!s.empty() && isspace(s[0])) s.erase(0, 1);
        while (!s.empty() && isspace(s.back())) s.pop_back();
        Opd o;
        if (s[0] == '{') { o.k = VEC; for (auto &x : split(s.substr(1, s.size() - 2))) o.v.push_back(operand(x)); return o; }
        if (s[0] == '[') {
            o.k = ADDR; s = s.substr(1, s.size() - 2);
            size_t p = s.find('+'); std::string off = p == std::string::npos ? "" : s.substr(p + 1);
            Opd b = operand(s.substr(0, p));
            o.reg = b.k == REG ? b.reg : -1; o.sym = b.k == SYM ? b.sym : ""; o.imm = (b.k == IMM ? b.imm : 0) + (off.empty() ? 0 : strtoll(off.c_str(), 0, 0));
            return o;
        }
        if (s[0] == '%') {
            auto it = reg.find(s);
            if (it != reg.end()) { o.k = REG; o.reg = it->second; return o; }
            size_t e = s.size(); while (e && isdigit(s[e - 1])) e--;
            auto r = range.find(s.substr(0, e));
            if (r != range.end() && e < s.size()) { o.k = REG; o.reg = reg[s] = r->second.first + atoi(s.c_str() + e); return o; }
            o.k = SREG; o.sym = s; return o;
        }
        auto it = reg.find(s);
        if (it != reg.end()) { o.k = REG; o.reg = it->second; return o; }
        if (s[0] == '0' && (s[1] == 'f' || s[1] == 'F')) { o.k = IMM; o.imm = strtoul(s.c_str() + 2, 0, 16); return o; }
        if (s[0] == '0' && (s[1] == 'd' || s[1] == 'D')) { o.k = IMM; o.imm = strtoull(s.c_str() + 2, 0, 16); return o; }
        if (isdigit(s[0]) || s[0] == '-') { o.k = IMM; o.imm = s[0] == '-' ? (u64)strtoll(s.c_str(), 0, 0) : strtoull(s.c_str(), 0, 0); return o; }
        o.k = SYM; o.sym = s; return o;
    }
    static std::vector<std::string> split(const std::string &s) {
        std::vector<std::string> r; int depth = 0; std::string c;
        for (char ch : s) { if (ch == '{' || ch == '[') depth++; if (ch == '}' || ch == ']') depth--; if (ch == ',' && !depth) { r.push_back(c); c.clear(); } else c += ch; }
        if (c.find_first_not_of(" \t\n") != std::string::npos) r.push_back(c);
        return r;
    }
    void statement(std::string s) {
        std::istringstream in(s); std::string w; in >> w;
        if (w == ".reg") {
            std::string t, rest; in >> t; std::getline(in, rest);
            for (auto n : split(rest)) {
                n.erase(0, n.find_first_not_of(" \t\n")); n.erase(n.find_last_not_of(" \t\n") + 1);
                size_t p = n.find('<');
                if (p != std::string::npos) { int c = atoi(n.c_str() + p + 1); range[n.substr(0, p)] = {k->nreg, c}; k->nreg += c; }
                else reg[n] = k->nreg++;
            }
            return;
        }
        if (w == ".shared" || w == ".local") {                // .shared .align 16 .b8 name[123]
            std::string a, t; int al = 1; in >> a; if (a == ".align") { in >> al >> t; } else t = a;
            std::string n; in >> n; size_t b = n.find('['); u64 sz = (b == std::string::npos ? 1 : strtoull(n.c_str() + b + 1, 0, 0)) * size_of(t.substr(1)); n = n.substr(0, b);
            u64 &tot = w == ".shared" ? k->shared_bytes : k->local_bytes; tot = (tot + al - 1) / al * al; (w == ".shared" ? k->shared : k->local)[n] = tot; tot += sz;
            return;
        }
        if (w[0] == '.') return;                              // .pragma, .loc, ...
        Ins i; i.text = s;
        if (w[0] == '@') { i.neg = w[1] == '!'; i.pred = operand(w.substr(1 + i.neg)).reg; in >> w; }
        i.op = w; std::string rest; std::getline(in, rest, '\0');
        std::string part; for (char ch : w + ".") if (ch == '.') { i.m.push_back(part); part.clear(); } else part += ch;
        for (auto x : split(rest)) {
            size_t b = x.find('|');                           // d|p of shfl
            if (b != std::string::npos) { i.o.push_back(operand(x.substr(0, b))); Opd p = operand(x.substr(b + 1)); i.o.push_back(p); i.cmp = 1; }
            else i.o.push_back(operand(x));
        }
        k->ins.push_back(i);
    }
    void body(const std::string &b) {
        std::string cur; int depth = 0;
        for (size_t p = 0; p < b.size(); p++) {
            char ch = b[p]; bool empty = cur.find_first_not_of(" \t\n\r") == std::string::npos;
            if (empty && (ch == '{' || ch == '}')) { cur.clear(); continue; }
            if (ch == '{') depth++;
            if (ch == '}') depth--;
            if (ch == ':' && !depth && cur.find(' ') == std::string::npos && cur.find('%') == std::string::npos) { cur.erase(0, cur.find_first_not_of(" \t\n\r")); label[cur] = (int)k->ins.size(); cur.clear(); continue; }
            if (ch == ';') { cur.erase(0, cur.find_first_not_of(" \t\n\r")); if (!cur.empty()) statement(cur); cur.clear(); continue; }
            cur += ch;
        }
        k->ins.push_back({}); k->ins.back().op = "ret"; k->ins.back().m = {"ret"};
        for (auto &i : k->ins) if (i.m[0] == "bra") { auto l = label.find(i.o[0].sym); if (l == label.end()) fail("ptx: no label %s", i.o[0].sym.c_str()); i.target = l->second; }
    }
};
enum Code { C_BAD, C_RET, C_BRA, C_BAR, C_MOV, C_LD, C_ST, C_ADD, C_SUB, C_MUL, C_MULWIDE, C_MULHI, C_MAD, C_MADWIDE, C_FMA, C_FMARM, C_DIV, C_REM, C_MIN, C_MAX, C_AND, C_OR, C_XOR, C_NOT, C_NEG, C_ABS, C_SHL, C_SHR, C_SETP, C_SELP, C_CVT, C_CVTA, C_EX2, C_LG2, C_RCP, C_RSQRT, C_SQRT, C_TANH, C_COPYSIGN, C_SHFL, C_ATOM, C_MMA, C_LDM, C_CPA, C_CPCOMMIT, C_CPWAIT, C_NOP };
bool has(const Ins &i, const char *s) { for (auto &x : i.m) if (x == s) return true; return false; }
void decode(Ins &i) {
    static const std::map<std::string, int> base = {{"ret", C_RET}, {"exit", C_RET}, {"bra", C_BRA}, {"bar", C_BAR}, {"barrier", C_BAR}, {"mov", C_MOV}, {"ld", C_LD}, {"ldu", C_LD}, {"st", C_ST}, {"add", C_ADD}, {"sub", C_SUB}, {"mul", C_MUL}, {"mad", C_MAD}, {"fma", C_FMA}, {"div", C_DIV}, {"rem", C_REM}, {"min", C_MIN}, {"max", C_MAX}, {"and", C_AND}, {"or", C_OR}, {"xor", C_XOR}, {"not", C_NOT}, {"neg", C_NEG}, {"abs", C_ABS}, {"shl", C_SHL}, {"shr", C_SHR}, {"setp", C_SETP}, {"selp", C_SELP}, {"cvt", C_CVT}, {"cvta", C_CVTA}, {"ex2", C_EX2}, {"lg2", C_LG2}, {"rcp", C_RCP}, {"rsqrt", C_RSQRT}, {"sqrt", C_SQRT}, {"tanh", C_TANH}, {"copysign", C_COPYSIGN}, {"shfl", C_SHFL}, {"atom", C_ATOM}, {"red", C_ATOM}, {"mma", C_MMA}, {"ldmatrix", C_LDM}, {"membar", C_NOP}, {"fence", C_NOP}, {"prefetch", C_NOP}};
    auto b = base.find(i.m[0]);
    i.code = b == base.end() ? C_BAD : b->second;
    if (i.m[0] == "cp") i.code = has(i, "commit_group") ? C_CPCOMMIT : has(i, "wait_group") || has(i, "wait_all") ? C_CPWAIT : C_CPA;
    if (i.code == C_MUL || i.code == C_MAD) { if (has(i, "wide")) i.code = i.code == C_MUL ? C_MULWIDE : C_MADWIDE; else if (has(i, "hi")) i.code = C_MULHI; }
    if (i.code == C_FMA && has(i, "rm")) i.code = C_FMARM;
    const std::string &t = i.m.back();
    auto settype = [&](const std::string &t) { i.flt = t[0] == 'f'; i.sgn = t[0] == 's'; i.bits = t == "pred" ? 1 : t == "bf16x2" ? 32 : size_of(t) * 8; };
    if (t.size() > 1 && strchr("bsuf", t[0]) && (isdigit(t[1]) || t[1] == 'f')) settype(t);
    if (t == "pred") i.bits = 1;
    if (i.code == C_LD || i.code == C_ST) {
        for (auto &x : i.m) { if (x == "v2") i.vec = 2; if (x == "v4") i.vec = 4; if (x == "param") i.space = 1; if (x == "shared") i.space = 2; if (x == "local") i.space = 3; }
    }
    if (i.code == C_ATOM) for (auto &x : i.m) if (x == "shared") i.space = 2;
    if (i.code == C_CVTA) { i.cmp = has(i, "to"); i.space = has(i, "shared") ? 2 : has(i, "local") ? 3 : 0; }
    static const char *cmps[] = {"eq", "ne", "lt", "le", "gt", "ge", "lo", "ls", "hi", "hs", "equ", "neu", "ltu", "leu", "gtu", "geu", "num", "nan"};
    if (i.code == C_SETP) for (int c = 0; c < 18; c++) if (i.m[1] == cmps[c]) i.cmp = c;
}
void load(const char *path) {
    std::ifstream f(path); if (!f) fail("cannot read %s", path);
    std::stringstream ss; ss << f.rdbuf(); std::string s = ss.str(), t;
    for (size_t p = 0; p < s.size(); p++) { if (s[p] == '/' && s[p + 1] == '/') { while (p < s.size() && s[p] != '\n') p++; t += '\n'; } else if (s[p] == '/' && s[p + 1] == '*') p = s.find("*/", p) + 1; else t += s[p]; }
    for (size_t p = 0; (p = t.find(".extern .shared", p)) != std::string::npos; p++) { size_t e = t.find('[', p), b = t.find_last_of(" \t", e); extern_shared[t.substr(b + 1, e - b - 1)] = true; }
    for (size_t p = 0; (p = t.find(".entry", p)) != std::string::npos;) {
        size_t lp = t.find('(', p), rp = t.find(')', lp), lb = t.find('{', rp), e = lb; int d = 0;
        do { if (t[e] == '{') d++; if (t[e] == '}') d--; e++; } while (d);
        std::string name = t.substr(p + 6, lp - p - 6); name.erase(0, name.find_first_not_of(" \t\n")); name.erase(name.find_last_not_of(" \t\n") + 1);
        Kernel &k = kernels[name]; k.name = name;
        for (auto &prm : Parser::split(t.substr(lp + 1, rp - lp - 1))) {   // .param .u64 name  or  .param .align 8 .b8 name[24]
            std::istringstream in(prm); std::string w, ty, n; int al = 0, sz; in >> w >> ty;
            while (ty == ".align" || ty == ".ptr" || ty == ".global") { if (ty == ".align") in >> al; in >> ty; }
            in >> n; while (n[0] == '.') { std::string x; if (n == ".align") in >> x; in >> n; }
            sz = size_of(ty.substr(1)); size_t b = n.find('['); if (b != std::string::npos) { sz *= atoi(n.c_str() + b + 1); n = n.substr(0, b); } else al = sz;
            k.pbytes = (k.pbytes + al - 1) / al * al; k.param[n] = k.pbytes; k.poff.push_back(k.pbytes); k.psize.push_back(sz); k.pbytes += sz;
        }
        Parser ps; ps.k = &k; ps.body(t.substr(lb, e - lb));
        for (auto &i : k.ins) decode(i);
        p = e;
    }
}
// ---- machine -----------------------------------------------------------------------------------
struct Copy2 { char *d; const char *s; int n, ns, group; };
struct Warp2 { u32 alive, atbar, parked; int pc[32]; std::vector<u64> r; std::vector<Copy2> cp[32]; int committed[32]; };
struct Block2 { const Kernel *k; const char *params; std::vector<char> sh, local; uint3 ntid, ctaid, nctaid; int nthreads; };
thread_local Block2 *B; thread_local int W; thread_local const Ins *cur_ins;                  // current block and warp
float f32(u64 v) { u32 u = (u32)v; float f; memcpy(&f, &u, 4); return f; }
u64 bitsf(float f) { u32 u; memcpy(&u, &f, 4); return u; }
u64 trunc_to(u64 v, int bits) { return bits >= 64 ? v : v & ((1ull << bits) - 1); }
int64_t sext(u64 v, int bits) { return bits >= 64 ? (int64_t)v : (int64_t)(v << (64 - bits)) >> (64 - bits); }
u64 sreg(const std::string &s, int l) {
    int t = W * 32 + l; const Block2 &b = *B;
    if (s == "%tid.x") return t % b.ntid.x;
    if (s == "%tid.y") return t / b.ntid.x % b.ntid.y;
    if (s == "%tid.z") return t / b.ntid.x / b.ntid.y;
    if (s == "%ntid.x") return b.ntid.x;
    if (s == "%ntid.y") return b.ntid.y;
    if (s == "%ntid.z") return b.ntid.z;
    if (s == "%ctaid.x") return b.ctaid.x;
    if (s == "%ctaid.y") return b.ctaid.y;
    if (s == "%ctaid.z") return b.ctaid.z;
    if (s == "%nctaid.x") return b.nctaid.x;
    if (s == "%nctaid.y") return b.nctaid.y;
    if (s == "%nctaid.z") return b.nctaid.z;
    if (s == "%laneid") return l;
    fail("ptx: special register %s", s.c_str());
}
u64 symbol(const std::string &s) {                           // address in its own space
    auto i = B->k->shared.find(s); if (i != B->k->shared.end()) return i->second;
    auto j = B->k->local.find(s); if (j != B->k->local.end()) return j->second;
    if (extern_shared.count(s)) return (B->k->shared_bytes + 127) / 128 * 128;
    fail("ptx: unknown symbol %s", s.c_str());
}
inline u64 get(Warp2 &w, const Opd &o, int l) {
    switch (o.k) { case REG: return w.r[o.reg * 32 + l]; case IMM: return o.imm; case SREG: return sreg(o.sym, l); case SYM: return symbol(o.sym); default: fail("ptx: operand"); }
}
inline void set(Warp2 &w, const Opd &o, int l, u64 v) { if (o.k == REG) w.r[o.reg * 32 + l] = v; else if (o.sym != "_") fail("ptx: destination"); }
char *address(Warp2 &w, const Opd &o, int l, int space, size_t n) {
    u64 a = (o.reg >= 0 ? w.r[o.reg * 32 + l] : o.sym.empty() || space == 1 ? 0 : symbol(o.sym)) + o.imm;
    if (space == 2) { if (a + n > B->sh.size()) fail("ptx: shared address %llu outside %zu bytes", (unsigned long long)a, B->sh.size()); return B->sh.data() + a; }
    if (space == 1) return (char *)B->params + B->k->param.at(o.sym) + o.imm;
    if (space == 3) return B->local.data() + (W * 32 + l) * B->k->local_bytes + a;
    if (a >= (u64)B->sh.data() && a < (u64)B->sh.data() + B->sh.size()) return (char *)a;
    if (!in_device((void *)a, n)) { describe_address(a); fail("ptx: access outside device memory in %s: %s", B->k->name.c_str(), cur_ins->text.c_str()); }
    return (char *)a;
}
float half_word(u64 v, int h) { return f32(h ? v & 0xffff0000u : v << 16); }
bool compare(const Ins &i, u64 x, u64 y) {
    int c = i.cmp;
    if (i.flt) { float a = f32(x), b = f32(y); bool un = a != a || b != b; switch (c) { case 0: return a == b; case 1: return !un && a != b; case 2: return a < b; case 3: return a <= b; case 4: return a > b; case 5: return a >= b; case 10: return un || a == b; case 11: return a != b; case 12: return un || a < b; case 13: return un || a <= b; case 14: return un || a > b; case 15: return un || a >= b; case 16: return !un; default: return un; } }
    if (i.sgn) { int64_t a = sext(x, i.bits), b = sext(y, i.bits); switch (c) { case 0: return a == b; case 1: return a != b; case 2: return a < b; case 3: return a <= b; case 4: return a > b; default: return a >= b; } }
    x = trunc_to(x, i.bits); y = trunc_to(y, i.bits);
    switch (c) { case 0: return x == y; case 1: return x != y; case 2: case 6: return x < y; case 3: case 7: return x <= y; case 4: case 8: return x > y; default: return x >= y; }
}
u64 convert(const Ins &i, u64 v) {                            // cvt[.rnd][.sat].dst.src
    std::string d = i.m[i.m.size() - 2], s = i.m.back(); bool sat = has(i, "sat");
    if (d == "bf16") return cuemu_f2bf(f32(v));
    if (s == "bf16") return trunc_to(v, 16) << 16;
    int sb = size_of(s) * 8, db = size_of(d) * 8;
    if (s[0] == 'f' && d[0] == 'f') { if (sb == 32 && db == 64) { double x = f32(v); u64 r; memcpy(&r, &x, 8); return r; } if (sb == 64) { double x; memcpy(&x, &v, 8); return bitsf((float)x); } float x = f32(v); if (has(i, "rni")) x = rintf(x); if (has(i, "rmi")) x = floorf(x); if (sat) x = fminf(fmaxf(x, 0.f), 1.f); return bitsf(x); }
    if (s[0] == 'f') { double x = f32(v); x = has(i, "rzi") ? trunc(x) : has(i, "rmi") ? floor(x) : has(i, "rpi") ? ceil(x) : rint(x); return trunc_to(d[0] == 's' ? (u64)(int64_t)x : (u64)x, db); }
    int64_t x = s[0] == 's' ? sext(v, sb) : (int64_t)trunc_to(v, sb);
    if (d[0] == 'f') return bitsf(s[0] == 's' ? (float)x : (float)(u64)x);
    return trunc_to((u64)x, db);
}
#define LANES for (int l = 0; l < 32; l++) if (!(m >> l & 1)) {} else
void step(Warp2 &w, const Ins &i, u32 m) {
    const auto &o = i.o; cur_ins = &i;
    switch (i.code) {
    case C_NOP: break;
    case C_MOV:
        if (o[0].k == VEC) { int n = (int)o[0].v.size(), b = i.bits / n; LANES { u64 v = get(w, o[1], l); for (int k = 0; k < n; k++) set(w, o[0].v[k], l, trunc_to(v >> (k * b), b)); } }
        else if (o[1].k == VEC) { int n = (int)o[1].v.size(), b = i.bits / n; LANES { u64 v = 0; for (int k = 0; k < n; k++) v |= trunc_to(get(w, o[1].v[k], l), b) << (k * b); set(w, o[0], l, v); } }
        else LANES set(w, o[0], l, get(w, o[1], l));
        break;
    case C_LD: LANES {
        size_t n = i.bits / 8; char *p = address(w, o[1], l, i.space, n * i.vec);
        if ((u64)p % (n * i.vec) && i.space != 1) fail("ptx: misaligned load: %s", i.text.c_str());
        for (int k = 0; k < i.vec; k++) { u64 v = 0; memcpy(&v, p + k * n, n); if (i.sgn) v = trunc_to((u64)sext(v, i.bits), 64); set(w, i.vec > 1 ? o[0].v[k] : o[0], l, v); }
    } break;
    case C_ST: LANES {
        size_t n = i.bits / 8; char *p = address(w, o[0], l, i.space, n * i.vec);
        if ((u64)p % (n * i.vec)) fail("ptx: misaligned store: %s", i.text.c_str());
        for (int k = 0; k < i.vec; k++) { u64 v = get(w, i.vec > 1 ? o[1].v[k] : o[1], l); memcpy(p + k * n, &v, n); }
    } break;
#define BIN(C, FE, IE) case C: if (i.flt) LANES { float a = f32(get(w, o[1], l)), b = f32(get(w, o[2], l)); (void)a; (void)b; set(w, o[0], l, bitsf(FE)); } else LANES { u64 a = get(w, o[1], l), b = get(w, o[2], l); (void)a; (void)b; set(w, o[0], l, trunc_to(IE, i.bits)); } break;
    BIN(C_ADD, a + b, a + b) BIN(C_SUB, a - b, a - b) BIN(C_MUL, a * b, a * b)
    BIN(C_DIV, a / b, (i.sgn ? (u64)(sext(a, i.bits) / sext(b, i.bits)) : trunc_to(a, i.bits) / trunc_to(b, i.bits)))
    BIN(C_REM, 0.f, (i.sgn ? (u64)(sext(a, i.bits) % sext(b, i.bits)) : trunc_to(a, i.bits) % trunc_to(b, i.bits)))
    BIN(C_MIN, fminf(a, b), (i.sgn ? (u64)std::min(sext(a, i.bits), sext(b, i.bits)) : std::min(trunc_to(a, i.bits), trunc_to(b, i.bits))))
    BIN(C_MAX, fmaxf(a, b), (i.sgn ? (u64)std::max(sext(a, i.bits), sext(b, i.bits)) : std::max(trunc_to(a, i.bits), trunc_to(b, i.bits))))
    BIN(C_AND, 0.f, a & b) BIN(C_OR, 0.f, a | b) BIN(C_XOR, 0.f, a ^ b)
    BIN(C_SHL, 0.f, ((u32)b >= (u32)i.bits ? 0 : a << (u32)b))
    BIN(C_SHR, 0.f, (i.sgn ? (u64)(sext(a, i.bits) >> std::min((u32)b, (u32)i.bits - 1)) : (u32)b >= (u32)i.bits ? 0 : trunc_to(a, i.bits) >> (u32)b))
    BIN(C_COPYSIGN, copysignf(b, a), 0)
    case C_MULWIDE: LANES { u64 a = get(w, o[1], l), b = get(w, o[2], l); set(w, o[0], l, i.sgn ? (u64)(sext(a, i.bits) * sext(b, i.bits)) : trunc_to(a, i.bits) * trunc_to(b, i.bits)); } break;
    case C_MULHI: LANES { u64 a = get(w, o[1], l), b = get(w, o[2], l); set(w, o[0], l, i.sgn ? trunc_to((u64)((sext(a, 32) * sext(b, 32)) >> 32), 32) : (trunc_to(a, 32) * trunc_to(b, 32)) >> 32); } break;
    case C_MAD: LANES set(w, o[0], l, trunc_to(get(w, o[1], l) * get(w, o[2], l) + get(w, o[3], l), i.bits)); break;
    case C_MADWIDE: LANES { u64 a = get(w, o[1], l), b = get(w, o[2], l); set(w, o[0], l, (i.sgn ? (u64)(sext(a, i.bits) * sext(b, i.bits)) : trunc_to(a, i.bits) * trunc_to(b, i.bits)) + get(w, o[3], l)); } break;
    case C_FMA: LANES set(w, o[0], l, bitsf(fmaf(f32(get(w, o[1], l)), f32(get(w, o[2], l)), f32(get(w, o[3], l))))); break;
    case C_FMARM: LANES { double p = (double)f32(get(w, o[1], l)) * f32(get(w, o[2], l)) + f32(get(w, o[3], l)); float r = (float)p; if (r > p) r = nextafterf(r, -INFINITY); set(w, o[0], l, bitsf(r)); } break;
    case C_NOT: LANES set(w, o[0], l, trunc_to(i.bits == 1 ? !get(w, o[1], l) : ~get(w, o[1], l), i.bits)); break;
    case C_NEG: LANES { u64 a = get(w, o[1], l); set(w, o[0], l, i.flt ? bitsf(-f32(a)) : trunc_to(0 - a, i.bits)); } break;
    case C_ABS: LANES { u64 a = get(w, o[1], l); set(w, o[0], l, i.flt ? bitsf(fabsf(f32(a))) : trunc_to((u64)std::abs(sext(a, i.bits)), i.bits)); } break;
    case C_SETP: LANES set(w, o[0], l, compare(i, get(w, o[1], l), get(w, o[2], l))); break;
    case C_SELP: LANES set(w, o[0], l, get(w, o[3], l) ? get(w, o[1], l) : get(w, o[2], l)); break;
    case C_CVT:
        if (i.m[i.m.size() - 2] == "bf16x2") LANES set(w, o[0], l, (u64)cuemu_f2bf(f32(get(w, o[1], l))) << 16 | cuemu_f2bf(f32(get(w, o[2], l))));
        else LANES set(w, o[0], l, convert(i, get(w, o[1], l)));
        break;
    case C_CVTA: LANES { u64 a = get(w, o[1], l), b = i.space == 2 ? (u64)B->sh.data() : 0; if (i.space == 3) fail("ptx: cvta.local"); set(w, o[0], l, i.cmp ? a - b : a + b); } break;
#define UN(C, E) case C: LANES { float a = f32(get(w, o[1], l)); set(w, o[0], l, bitsf(E)); } break;
    UN(C_EX2, exp2f(a)) UN(C_LG2, log2f(a)) UN(C_RCP, 1.f / a) UN(C_RSQRT, 1.f / sqrtf(a)) UN(C_SQRT, sqrtf(a)) UN(C_TANH, tanhf(a))
    case C_SHFL: {                                             // d|p, a, b, c, membermask
        int q = i.cmp; u64 v[32]; LANES v[l] = get(w, o[1 + q], l);
        LANES {
            int b = (int)get(w, o[2 + q], l) & 31, c = (int)get(w, o[3 + q], l), cl = c & 31, seg = c >> 8 & 31, mx = (l & seg) | (cl & ~seg), mn = l & seg, j; bool ok;
            if (i.m[2] == "up") { j = l - b; ok = j >= mx; } else if (i.m[2] == "down") { j = l + b; ok = j <= mx; } else if (i.m[2] == "bfly") { j = l ^ b; ok = j <= mx; } else { j = mn | (b & ~seg); ok = j <= mx; }
            if (!ok) j = l;
            if (!(m >> j & 1)) fail("ptx: shfl reads inactive lane %d", j);
            set(w, o[0], l, v[j]); if (q) set(w, o[1], l, ok);
        }
    } break;
    case C_ATOM: {                                             // atom.space.add.f32 d, [a], b     red.space.add.f32 [a], b
        bool red = i.m[0] == "red"; const Opd &a = o[red ? 0 : 1], &b = o[red ? 1 : 2];
        LANES { char *p = address(w, a, l, i.space, i.bits / 8); u64 old = 0;
            if (has(i, "add") && i.flt) { float f = f32(get(w, b, l)); u32 e = __atomic_load_n((u32 *)p, __ATOMIC_RELAXED), n; do n = (u32)bitsf(f32(e) + f); while (!__atomic_compare_exchange_n((u32 *)p, &e, n, true, __ATOMIC_RELAXED, __ATOMIC_RELAXED)); old = e; }
            else if (has(i, "add") && i.bits == 32) old = __atomic_fetch_add((u32 *)p, (u32)get(w, b, l), __ATOMIC_RELAXED);
            else fail("ptx: %s", i.op.c_str());
            if (!red) set(w, o[0], l, old); }
    } break;
    case C_LDM: {
        if (m != ~0u) fail("ptx: ldmatrix needs 32 lanes");
        int n = (int)o[0].v.size(); bool tr = has(i, "trans");
        for (int k = 0; k < n; k++) { uint16_t x[8][8]; for (int r = 0; r < 8; r++) { char *p = address(w, o[1], k * 8 + r, 2, 16); if ((u64)(p - B->sh.data()) % 16) fail("ptx: ldmatrix misaligned"); memcpy(x[r], p, 16); }
            for (int l = 0; l < 32; l++) { int a = l >> 2, b = (l & 3) * 2; set(w, o[0].v[k], l, tr ? x[b][a] | (u32)x[b + 1][a] << 16 : x[a][b] | (u32)x[a][b + 1] << 16); } }
    } break;
    case C_MMA: {
        if (m != ~0u) fail("ptx: mma needs 32 lanes");
        if (i.op != "mma.sync.aligned.m16n8k16.row.col.f32.bf16.bf16.f32") fail("ptx: %s", i.op.c_str());
        float A[16][16], Bm[16][8], C[16][8];
        for (int l = 0; l < 32; l++) { int g = l >> 2, t = (l & 3) * 2; for (int h = 0; h < 2; h++) {
            A[g][t + h] = half_word(get(w, o[1].v[0], l), h); A[g + 8][t + h] = half_word(get(w, o[1].v[1], l), h); A[g][t + 8 + h] = half_word(get(w, o[1].v[2], l), h); A[g + 8][t + 8 + h] = half_word(get(w, o[1].v[3], l), h);
            Bm[t + h][g] = half_word(get(w, o[2].v[0], l), h); Bm[t + 8 + h][g] = half_word(get(w, o[2].v[1], l), h);
            C[g][t + h] = f32(get(w, o[3].v[h], l)); C[g + 8][t + h] = f32(get(w, o[3].v[2 + h], l)); } }
        for (int r = 0; r < 16; r++) for (int k = 0; k < 16; k++) for (int c = 0; c < 8; c++) C[r][c] += A[r][k] * Bm[k][c];
        for (int l = 0; l < 32; l++) { int g = l >> 2, t = (l & 3) * 2; for (int h = 0; h < 2; h++) { set(w, o[0].v[h], l, bitsf(C[g][t + h])); set(w, o[0].v[2 + h], l, bitsf(C[g + 8][t + h])); } }
    } break;
    case C_CPA: LANES {                                        // cp.async.cg.shared.global [d], [s], 16{, srcsize}
        int n = (int)o[2].imm, ns = o.size() > 3 ? (int)get(w, o[3], l) : n; char *d = address(w, o[0], l, 2, n); const char *s = ns ? address(w, o[1], l, 0, ns) : nullptr;
        if ((u64)(d - B->sh.data()) % n || (u64)s % n) fail("ptx: cp.async misaligned");
        w.cp[l].push_back({d, s, n, ns, w.committed[l]});
    } break;
    case C_CPCOMMIT: LANES w.committed[l]++; break;
    case C_CPWAIT: LANES { int keep = has(i, "wait_all") ? -1 : (int)o[0].imm; auto &v = w.cp[l]; size_t k = 0; for (; k < v.size() && (keep < 0 || v[k].group < w.committed[l] - keep); k++) { memcpy(v[k].d, v[k].s, v[k].ns); memset(v[k].d + v[k].ns, 0, v[k].n - v[k].ns); } v.erase(v.begin(), v.begin() + k); } break;
    default: fail("ptx: instruction not implemented: %s", i.text.c_str());
    }
}
void run_warp(Warp2 &w) {
    const std::vector<Ins> &code = B->k->ins;
    for (;;) {
        u32 run = w.alive & ~w.atbar & ~w.parked;
        if (!run) { if (w.parked) fail("ptx: lanes %08x wait in a warp-wide operation that the others never reach", w.parked); return; }
        int pc = 1 << 30; for (int l = 0; l < 32; l++) if (run >> l & 1 && w.pc[l] < pc) pc = w.pc[l];
        u32 m = 0; for (int l = 0; l < 32; l++) if ((run | w.parked) >> l & 1 && w.pc[l] == pc) m |= 1u << l;
        bool all = m == run && !w.parked;
        do {                                                   // as long as all runnable lanes are together, no bookkeeping
            const Ins &i = code[pc];
            u32 e = m;
            if (i.pred >= 0) { e = 0; for (int l = 0; l < 32; l++) if (m >> l & 1 && (w.r[i.pred * 32 + l] != 0) != i.neg) e |= 1u << l; }
            bool sync = i.code == C_SHFL || i.code == C_MMA || i.code == C_LDM;
            if (sync) {
                u32 need = (i.code == C_SHFL ? (u32)i.o.back().imm : ~0u) & w.alive;
                if ((need & e) != need) { w.parked |= m; for (int l = 0; l < 32; l++) if (m >> l & 1) w.pc[l] = pc; break; }
                w.parked &= ~m;
            }
            if (i.code == C_BRA) {
                for (int l = 0; l < 32; l++) if (m >> l & 1) w.pc[l] = e >> l & 1 ? i.target : pc + 1;
                if (e && e != m) break;
                pc = e ? i.target : pc + 1;
            } else if (i.code == C_RET) {
                w.alive &= ~e; for (int l = 0; l < 32; l++) if (m >> l & 1) w.pc[l] = pc + 1;
                break;
            } else if (i.code == C_BAR) {
                w.atbar |= e; for (int l = 0; l < 32; l++) if (m >> l & 1) w.pc[l] = pc + 1;
                break;
            } else { if (e) step(w, i, e); pc++; for (int l = 0; l < 32; l++) if (m >> l & 1) w.pc[l] = pc; }
        } while (all);
    }
}
}  // namespace
bool cuemu::ptx_has(const void *fn) {
    const char *path = getenv("GPT_CUDA_PTX"); if (!path) return false;
    static bool once = (load(path), true); (void)once;
    for (auto &f : functions()) if (f.addr == (uintptr_t)fn && kernels.count(f.mangled)) return true;
    return false;
}
void cuemu::ptx_run(const Launch &l, const void *args) {
    const Kernel *k = nullptr;
    for (auto &f : functions()) if (f.addr == (uintptr_t)l.fn) k = &kernels.at(f.mangled);
    std::vector<char> params(k->pbytes + 16); const void *ptr[64]; l.params(args, ptr);
    for (size_t i = 0; i < k->psize.size(); i++) memcpy(&params[k->poff[i]], ptr[i], k->psize[i]);
    long n = (long)l.grid.x * l.grid.y * l.grid.z;
    #pragma omp parallel for schedule(dynamic, 1) if (n > 1)
    for (long b = 0; b < n; b++) {
        Block2 blk; B = &blk; blk.k = k; blk.params = params.data(); blk.nthreads = l.block.x * l.block.y * l.block.z;
        blk.ntid = {l.block.x, l.block.y, l.block.z}; blk.nctaid = {l.grid.x, l.grid.y, l.grid.z}; blk.ctaid = {(unsigned)(b % l.grid.x), (unsigned)(b / l.grid.x % l.grid.y), (unsigned)(b / l.grid.x / l.grid.y)};
        std::vector<char> raw((k->shared_bytes + 127) / 128 * 128 + l.smem + 128, (char)0xff);
        blk.sh.swap(raw); blk.sh.resize((k->shared_bytes + 127) / 128 * 128 + l.smem); blk.local.resize(k->local_bytes * blk.nthreads);
        int nw = (blk.nthreads + 31) / 32; static thread_local std::vector<Warp2> ws; if ((int)ws.size() < nw) ws.resize(nw);
        for (int w = 0; w < nw; w++) { Warp2 &x = ws[w]; int c = std::min(32, blk.nthreads - w * 32); x.alive = c == 32 ? ~0u : (1u << c) - 1; x.atbar = x.parked = 0; x.r.assign((size_t)k->nreg * 32, 0xdeadbeefdeadbeefull); for (int q = 0; q < 32; q++) { x.pc[q] = 0; x.cp[q].clear(); x.committed[q] = 0; } }
        for (;;) {
            bool any = false;
            for (W = 0; W < nw; W++) if (ws[W].alive & ~ws[W].atbar) { run_warp(ws[W]); any = true; }
            if (!any) { bool bar = false; for (int w = 0; w < nw; w++) { bar |= ws[w].atbar & ws[w].alive; ws[w].atbar = 0; } if (!bar) break; }
        }
    }
}
