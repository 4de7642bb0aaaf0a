// symbols.cpp: owns what the program's own file tells: functions by address, shared arrays in thread-local storage, source lines.
//
// A __shared__ array of a kernel is a thread_local of that function; its symbol (_ZZ..., STT_TLS) gives place, size and name.
#include "emulator.h"
#include <cxxabi.h>
#include <elf.h>
#include <execinfo.h>
#include <fcntl.h>
#include <link.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>
#include <mutex>
#include <unordered_map>

namespace cuemu {
namespace {
struct Program { uintptr_t base, tls_base; size_t tls_size; std::vector<Symbol> functions, shared_arrays; std::unordered_map<uintptr_t, size_t> by_address; };

int find_program(dl_phdr_info *info, size_t, void *to) {
  if (info->dlpi_name && info->dlpi_name[0]) return 0;       // a library
  Program *p = static_cast<Program *>(to);
  p->base = info->dlpi_addr, p->tls_base = (uintptr_t)info->dlpi_tls_data;
  for (int k = 0; k < info->dlpi_phnum; k++) if (info->dlpi_phdr[k].p_type == PT_TLS) p->tls_size = info->dlpi_phdr[k].p_memsz;
  return 1;
}

void add_symbol(Program *p, const Elf64_Sym &symbol, const char *name) {
  const int type = ELF64_ST_TYPE(symbol.st_info);
  if (type != STT_FUNC && type != STT_TLS) return;
  if (type == STT_TLS && (strncmp(name, "_ZZ", 3) || strstr(name, "5cuemu"))) return;   // not local to a function, or the emulator's own
  int status;
  char *readable = abi::__cxa_demangle(name, NULL, NULL, &status);
  Symbol s = {readable ? readable : name, name, symbol.st_value + (type == STT_FUNC ? p->base : 0), symbol.st_size};
  free(readable);
  if (type == STT_FUNC) p->by_address[s.addr] = p->functions.size();
  (type == STT_FUNC ? p->functions : p->shared_arrays).push_back(s);
}

Program read_program() {
  Program p = {};
  dl_iterate_phdr(find_program, &p);
  const int fd = open("/proc/self/exe", O_RDONLY);
  struct stat st;
  if (fd < 0 || fstat(fd, &st)) fail("the program cannot read its own file /proc/self/exe, where the names of kernels are");
  char *file = (char *)mmap(NULL, (size_t)st.st_size, PROT_READ, MAP_PRIVATE, fd, 0);
  close(fd);
  if (file == MAP_FAILED) fail("the program cannot map its own file");
  const Elf64_Ehdr *header = (const Elf64_Ehdr *)file;
  const Elf64_Shdr *section = (const Elf64_Shdr *)(file + header->e_shoff);
  for (int i = 0; i < header->e_shnum; i++) {
    if (section[i].sh_type != SHT_SYMTAB) continue;
    const Elf64_Sym *symbol = (const Elf64_Sym *)(file + section[i].sh_offset);
    const char *names = file + section[section[i].sh_link].sh_offset;
    for (size_t k = 0; k < section[i].sh_size / sizeof *symbol; k++) add_symbol(&p, symbol[k], names + symbol[k].st_name);
  }
  munmap(file, (size_t)st.st_size);
  if (p.functions.empty()) fail("the program has no symbols; link it without -s");
  return p;
}
const Program &program() { static const Program p = read_program(); return p; }
}  // namespace

const std::vector<Symbol> &functions() { return program().functions; }
const std::vector<Symbol> &shared_arrays() { return program().shared_arrays; }
uintptr_t program_base() { return program().base; }
size_t tls_size() { return program().tls_size; }
uintptr_t tls_base() {                                       // of the calling thread
  Program p = {};
  dl_iterate_phdr(find_program, &p);
  return p.tls_base;
}
const Symbol *function_at(const void *fn) {
  auto found = program().by_address.find((uintptr_t)fn);
  return found == program().by_address.end() ? NULL : &program().functions[found->second];
}
std::string kernel_name(const void *fn) {
  const Symbol *s = function_at(fn);
  return s ? s->name : "?";
}

// addr2line names the .cu's lines; those of the emulator's own headers are left out.
static void print_lines(const std::string &addresses, int most) {
  const std::string command = "addr2line -Cfpise /proc/" + std::to_string(getpid()) + "/exe" + addresses + " 2>/dev/null | grep -v -E 'cuda_runtime.h|emulator.cpp|warp_ops.cpp|\\?\\?|std::' | head -"
                              + std::to_string(most) + " | sed 's/^/      /' 1>&2";
  if (system(command.c_str())) {}
}
static std::string hex_of(const void *pc) {                  // of the call that returns there
  char text[32];
  snprintf(text, sizeof text, " %lx", (unsigned long)((uintptr_t)pc - program_base() - 1));
  return text;
}
void print_line(const void *pc) { print_lines(hex_of(pc), 3); }
void print_backtrace() {
  void *pc[24];
  const int n = backtrace(pc, 24);
  std::string addresses;
  for (int i = 2; i < n; i++) addresses += hex_of(pc[i]);
  print_lines(addresses, 6);
}
}  // namespace cuemu
