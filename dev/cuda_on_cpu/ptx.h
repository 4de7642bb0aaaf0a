// ptx.h: owns what the parts of the PTX interpreter share: a kernel as it was parsed, a warp as it runs.
//
//   ptx_parse.cpp   text to Kernel: registers and constants get their places, labels become numbers
//   ptx_ops.cpp     what each instruction computes, as a function over the lanes of a warp
//   ptx_run.cpp     warps, blocks and launches
// A register is the values of 32 lanes side by side, so that an instruction is one loop, which the host compiler vectorises: 32-bit words for
// registers of 8 to 32 bits (narrower values are zero-extended), 64-bit words for wide ones; a predicate is one word, a bit a lane.
// Constants, special registers and the sink "_" have places like registers, so an operand is never anything but a place.
#pragma once
#include "emulator.h"
#include <string>
#include <string_view>
#include <vector>

namespace ptx {
using cuemu::Launch;
enum { LANES = 32, MOST_OPERANDS = 72 };
static const uint32_t ALL_LANES = 0xffffffffu;

enum Type : uint8_t { NO_TYPE, PRED, B8, U8, S8, B16, U16, S16, BF16, B32, U32, S32, F32, BF16X2, B64, U64, S64, F64 };
inline int type_bits(Type t) { return t == PRED ? 1 : t <= S8 ? 8 : t <= BF16 ? 16 : t <= BF16X2 ? 32 : 64; }
inline bool is_wide(Type t) { return t >= B64; }
enum Space : uint8_t { GENERIC, GLOBAL, SHARED, LOCAL, PARAM };
// What the loop over a warp's instructions does itself. TOGETHER: the lanes named by a mask wait for each other.
enum Flow : uint8_t { STRAIGHT, BRANCH, RETURN, BARRIER, TOGETHER };

struct Warp;
struct Instruction;
typedef void (*Execute)(Warp &w, const Instruction &i, uint32_t lanes);   // lanes: those that take part, a bit each

struct Instruction {
  Execute execute;
  Flow flow;
  bool guard_negated;
  Space space;
  uint8_t bytes, elements;        // of a memory access: bytes of an element, elements of a vector; mov {}: elements
  uint8_t option;                 // what an operation's function wants to know beside its operands
  int guard;                      // place of the predicate that has to hold, or -1
  int operand[MOST_OPERANDS];     // places, in the order of the text, vectors flattened
  int operands;
  int mask;                       // of TOGETHER: place of the mask of lanes, or -1: all (choose() gives the number of the operand)
  int target;                     // of a branch: number of the instruction
  int source;                     // number of the source line in Kernel::sources, 0: not known
  int64_t offset[2];              // constant parts of its addresses, in the order of the text
  bool address_wide[2];           // whether they are in 64-bit registers
  std::string_view text;
};

struct Parameter { size_t offset, bytes; };
struct Constant { int place; uint64_t value; bool wide; };
enum SpecialRegister { TID_X, TID_Y, TID_Z, NTID_X, NTID_Y, NTID_Z, CTAID_X, CTAID_Y, CTAID_Z, NCTAID_X, NCTAID_Y, NCTAID_Z, LANEID, WARPID, LANEMASK_LT, LANEMASK_LE, LANEMASK_GT, LANEMASK_GE, LANEMASK_EQ, SPECIAL_REGISTERS };
struct Special { int place; SpecialRegister which; };

struct Kernel {
  std::string name;                       // mangled
  std::vector<Parameter> parameters;
  size_t parameter_bytes, register_bytes, static_shared, dynamic_shared_at, local_bytes;
  std::vector<Instruction> instructions;
  std::vector<Constant> constants;
  std::vector<Special> specials;
  std::vector<std::string> sources;       // "file:line", where the file was made with -lineinfo
  std::string unknown;                    // what keeps it from running, in a sentence; empty: nothing
};

// The kernel of that mangled name in the file that GPT_CUDA_PTX names, parsed when first asked for; NULL: not there, or no file is named.
const Kernel *find_kernel(const std::string &mangled);
bool in_module_variable(uint64_t address, size_t bytes);   // of the file's .global and .const variables
// "file.ptx:123: text of the instruction"
std::string place_of(const Instruction &i);

// ---- what ptx_parse.cpp asks of ptx_ops.cpp ----

struct Opcode {
  std::vector<std::string> part;          // between the dots
  std::vector<Type> declared;             // of the operands: registers as they were declared, else NO_TYPE
  bool has(const char *p) const { for (size_t k = 1; k < part.size(); k++) if (part[k] == p) return true; return false; }
};
Type type_named(const std::string &name); // NO_TYPE: it is none
// Sets execute and what it needs, and the type each operand is read or written as (constants are laid down in that width). False: not known.
bool choose(const Opcode &op, Instruction *i, std::vector<Type> *operand_types);

// ---- the machine ----

struct Copy { char *to; const char *from; uint8_t bytes, valid, lane; int group; };    // a cp.async that has not landed
struct Block {
  const Kernel *kernel;
  const Launch *launch;
  uint3 index;
  char *shared, *local;
  const char *parameters;
  size_t shared_bytes;
  uint32_t votes, voters;                 // of a bar.red: threads whose predicate is true, and all
};
struct Product { const Instruction *i; cuemu::WgmmaTiles tiles; int group; };              // a wgmma under way
enum { REMEMBERED_RANGES = 64 };
struct Warp {
  Block *block;
  int number;
  uint32_t alive, at_barrier, waiting;    // a bit a lane
  int pc[LANES];
  char *registers;
  const Instruction *reduction;           // the bar.red at which it waits, or NULL
  std::vector<Copy> copies;
  int groups_closed[LANES];
  std::vector<Product> products;
  int product_groups;                     // closed
  cuemu::Range known[REMEMBERED_RANGES];  // allocations that instructions found last: most find the same again
};

template <class Word> Word *lanes_at(const Warp &w, int place) { return reinterpret_cast<Word *>(w.registers + place); }
inline uint32_t &predicate_at(const Warp &w, int place) { return *reinterpret_cast<uint32_t *>(w.registers + place); }
enum BarrierResult : uint8_t { BARRIER_PLAIN, BARRIER_AND, BARRIER_OR, BARRIER_COUNT };   // Instruction::option of a BARRIER
// Ends the process with the sentence, the instruction and the thread.
[[noreturn]] void fail_in(const Warp &w, const Instruction &i, int lane, const char *format, ...) __attribute__((format(printf, 4, 5)));
}  // namespace ptx
