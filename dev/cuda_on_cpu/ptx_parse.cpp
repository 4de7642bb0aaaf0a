// ptx_parse.cpp: owns reading PTX: the text that nvcc wrote, to kernels whose operands are places and whose labels are numbers.
//
// The file is read once and its kernels are found by name; a kernel is parsed when it is first launched. PTX ISA 9.0, as much of it as nvcc makes of
// CUDA C++ without calls. What is not understood is kept as a sentence in Kernel::unknown, and said when somebody launches that kernel.
#include "ptx.h"
#include <fstream>
#include <map>
#include <memory>
#include <mutex>
#include <sstream>
#include <tuple>
#include <unordered_map>

namespace ptx {
namespace {
typedef std::string_view View;

struct Variable { View name; size_t bytes, align; };
struct Module {
  std::string path, text;                                   // without comments; as long as the file, so that lines can be counted
  std::unordered_map<std::string, View> entries;            // kernel: from its parameters to its closing brace
  std::vector<Variable> shared;                             // declared outside kernels
  std::map<View, size_t> dynamic_shared;                    // name: alignment
  struct Memory { std::unique_ptr<char[]> data; size_t bytes; };
  std::map<View, Memory> globals;                           // .global and .const variables
  std::map<int, std::string> files;
  std::unordered_map<std::string, std::unique_ptr<Kernel>> kernels;
  std::mutex parsing;
};
Module *module;

bool is_space(char c) { return c == ' ' || c == '\t' || c == '\n' || c == '\r'; }
bool is_name(char c) { return isalnum((unsigned char)c) || c == '_' || c == '$' || c == '%' || c == '.'; }
View trimmed(View s) {
  while (!s.empty() && is_space(s.front())) s.remove_prefix(1);
  while (!s.empty() && is_space(s.back())) s.remove_suffix(1);
  return s;
}
// The next word of a declaration; braces, brackets and commas are words of their own.
View next_word(View *s) {
  *s = trimmed(*s);
  size_t n = 0;
  while (n < s->size() && is_name((*s)[n])) n++;
  if (n == 0 && !s->empty()) n = 1;
  View word = s->substr(0, n);
  s->remove_prefix(n);
  return word;
}
uint64_t number(View s) {
  std::string text(s);
  return text[0] == '-' ? (uint64_t)strtoll(text.c_str(), NULL, 0) : strtoull(text.c_str(), NULL, 0);
}
size_t up_to(size_t n, size_t multiple) { return (n + multiple - 1) / multiple * multiple; }

// Separated by commas that stand outside brackets.
std::vector<View> items_of(View s) {
  std::vector<View> items;
  int depth = 0;
  size_t begin = 0;
  for (size_t i = 0; i <= s.size(); i++) {
    if (i < s.size() && (s[i] == '{' || s[i] == '[')) depth++;
    if (i < s.size() && (s[i] == '}' || s[i] == ']')) depth--;
    if (i == s.size() || (s[i] == ',' && depth == 0)) {
      View item = trimmed(s.substr(begin, i - begin));
      if (!item.empty()) items.push_back(item);
      begin = i + 1;
    }
  }
  return items;
}

// ".align 16 .b8 name[24]", ".u64 .ptr .align 1 name": what stands behind .param, .shared, .local, .global, .const
Variable variable_of(View s) {
  Variable v = {View(), 0, 0};
  size_t element = 1;
  bool pointer = false;
  while (!s.empty()) {
    View word = next_word(&s);
    if (word == ".ptr") pointer = true;
    else if (word == ".align") { size_t n = number(next_word(&s)); if (!pointer) v.align = n; }
    else if (word[0] == '.') { if (type_named(std::string(word.substr(1)))) element = (size_t)type_bits(type_named(std::string(word.substr(1)))) / 8; }
    else if (word == "[") { v.bytes = element * number(next_word(&s)); break; }
    else v.name = word;
  }
  if (v.bytes == 0) v.bytes = element;
  if (v.align == 0) v.align = element;
  return v;
}

// ---- a file ----

// Comments become blanks: places and lines stay.
void blank_comments(std::string *t) {
  for (size_t i = 0; i + 1 < t->size(); i++) {
    if ((*t)[i] != '/') continue;
    if ((*t)[i + 1] == '/') while (i < t->size() && (*t)[i] != '\n') (*t)[i++] = ' ';
    else if ((*t)[i + 1] == '*') {
      size_t end = std::min(t->find("*/", i + 2), t->size() - 2) + 2;
      for (; i < end; i++) if ((*t)[i] != '\n') (*t)[i] = ' ';
    }
  }
}
size_t closing_brace(View t, size_t open) {
  int depth = 0;
  for (size_t i = open; i < t.size(); i++) {
    if (t[i] == '{') depth++;
    if (t[i] == '}' && --depth == 0) return i;
  }
  cuemu::fail("%s: a brace is not closed", module->path.c_str());
}

// ".global .align 4 .b8 table[24] = {65, 144, ...}"
void add_global(View s) {
  size_t equals = s.find('=');
  Variable v = variable_of(s.substr(0, equals));
  std::unique_ptr<char[]> memory(new char[up_to(v.bytes, 16)]());
  if (equals != View::npos) {
    View values = trimmed(s.substr(equals + 1));
    if (values.front() == '{') values = values.substr(1, values.size() - 2);
    std::vector<View> items = items_of(values);
    size_t element = items.size() > 1 || v.bytes <= 8 ? v.bytes / std::max(v.bytes / 8, items.size()) : 1;
    element = s.find(".b8") != View::npos ? 1 : element;
    for (size_t i = 0; i < items.size() && (i + 1) * element <= v.bytes; i++) {
      uint64_t x = number(items[i]);
      memcpy(&memory[i * element], &x, element);
    }
  }
  module->globals[v.name] = {std::move(memory), v.bytes};
}

// One declaration outside of kernels, from its first word on; returns where it ends.
size_t read_declaration(View t, size_t at) {
  View rest = t.substr(at), words = rest;
  View first = next_word(&words);
  if (first == ".version" || first == ".target" || first == ".address_size" || first == ".file") {
    size_t end = std::min(rest.find('\n'), rest.size());
    if (first == ".file") {
      View line = rest.substr(0, end), name = line;
      next_word(&name);
      int n = (int)number(next_word(&name));
      name = name.substr(name.find('"') + 1);
      module->files[n] = std::string(name.substr(0, name.find('"')));
    }
    return at + end;
  }
  const size_t semicolon = rest.find(';'), brace = rest.find('{');
  if (first == ".section") return closing_brace(t, at + brace) + 1;
  View declaration = rest.substr(0, std::min(semicolon, brace));
  if (declaration.find(".entry") != View::npos) {
    View from = rest.substr(declaration.find(".entry"));
    next_word(&from);
    View name = next_word(&from);
    size_t end = closing_brace(t, at + brace);
    module->entries[std::string(name)] = t.substr((size_t)(from.data() - t.data()), end + 1 - (size_t)(from.data() - t.data()));
    return end + 1;
  }
  if (declaration.find(".func") != View::npos) return brace < semicolon ? closing_brace(t, at + brace) + 1 : at + semicolon + 1;   // a call to it is not known
  const bool shared = declaration.find(".shared") != View::npos;
  if (shared && first == ".extern") { Variable v = variable_of(declaration); module->dynamic_shared[v.name] = v.align; }
  else if (shared) module->shared.push_back(variable_of(declaration));
  else if (declaration.find(".global") != View::npos || declaration.find(".const") != View::npos) add_global(rest.substr(0, semicolon));
  return at + semicolon + 1;
}

void read_module(const char *path) {
  std::ifstream file(path);
  std::stringstream all;
  all << file.rdbuf();
  module = new Module();
  module->path = path, module->text = all.str();
  if (!file || module->text.find(".entry") == std::string::npos) cuemu::fail("GPT_CUDA_PTX=%s: there are no kernels in that file, or it cannot be read; make one with nvcc -ptx", path);
  blank_comments(&module->text);
  View t = module->text;
  for (size_t at = 0; at < t.size();)
    if (is_space(t[at])) at++;
    else at = read_declaration(t, at);
}

// ---- a kernel ----

struct Operand {
  enum { REGISTER, NUMBER, SPECIAL, SINK, ADDRESS, NAME } kind;
  int place;              // REGISTER; ADDRESS: of its register, or -1
  Type type;              // REGISTER, ADDRESS
  uint64_t value;         // NUMBER; ADDRESS: its constant part
  bool dynamic;           // to which the place of dynamic shared memory has still to be added
  SpecialRegister special;
  View name;
};

class KernelParser {
public:
  KernelParser(Kernel *kernel) : k(kernel) { scopes.emplace_back(); }
  void parse(View text) {
    size_t close = text.find(')'), open = text.find('{', close);
    parse_parameters(text.substr(text.find('(') + 1, close - text.find('(') - 1));
    parse_body(text.substr(open + 1, text.size() - open - 2));
    finish();
  }

private:
  struct Range { int place, count; Type type; };                       // registers %r<count>
  struct Scope { std::unordered_map<View, Range> ranges, names; };
  Kernel *k;
  std::vector<Scope> scopes;
  std::unordered_map<View, int> labels;                                 // number of the instruction behind it
  std::unordered_map<View, uint64_t> symbols;                           // parameters, shared and local variables: offset in their space
  std::map<std::tuple<uint64_t, bool, bool>, int> constants;            // value, wide, dynamic: place
  std::vector<size_t> dynamic_constants;                                // numbers of constants: see finish()
  std::vector<std::pair<size_t, int>> dynamic_addresses;                // instruction and number of its address
  int addresses = 0;                                                    // of the instruction at hand, so far
  std::map<int, int> specials;
  std::map<std::pair<int, int>, int> source_numbers;
  std::vector<View> targets;                                            // label of each instruction's branch, or empty
  int next_place = 0, sink = -1, current_source = 0;

  void cannot(View statement, const char *what, const std::string &which) {
    if (!k->unknown.empty()) return;
    Instruction i = {};
    i.text = statement;
    k->unknown = place_of(i) + ": " + what + (which.empty() ? "" : " " + which);
  }
  int new_place(Type t) {
    int place = next_place;
    next_place += t == PRED ? 32 : is_wide(t) ? LANES * 8 : LANES * 4;
    return place;
  }

  void parse_parameters(View s) {
    for (View item : items_of(s)) {
      Variable v = variable_of(item.substr(6));                         // behind ".param"
      k->parameter_bytes = up_to(k->parameter_bytes, v.align);
      symbols[v.name] = k->parameter_bytes;
      k->parameters.push_back({k->parameter_bytes, v.bytes});
      k->parameter_bytes += v.bytes;
    }
  }

  void parse_body(View s) {
    size_t at = 0;
    while (at < s.size()) {
      char c = s[at];
      if (is_space(c) || c == ';') { at++; continue; }
      if (c == '{') { scopes.emplace_back(); at++; continue; }
      if (c == '}') { if (scopes.size() > 1) scopes.pop_back(); at++; continue; }
      size_t end = at;
      while (end < s.size() && is_name(s[end])) end++;
      if (end < s.size() && s[end] == ':' && s.substr(end, 2) != "::") {   // shared::cta is no label
        labels[s.substr(at, end - at)] = (int)k->instructions.size(); at = end + 1; continue; }
      const bool line = s.substr(at, 4) == ".loc" && at + 4 < s.size() && is_space(s[at + 4]);                       // ends with its line, all else with a semicolon
      end = std::min(s.find(line ? '\n' : ';', at), s.size());
      if (line) parse_location(s.substr(at, end - at));
      else if (c == '.') parse_directive(s.substr(at, end - at));
      else parse_instruction(s.substr(at, end - at));
      at = end + 1;
    }
  }

  // .loc file line column[, function_name ..., inlined_at ...]
  void parse_location(View s) {
    next_word(&s);
    int file = (int)number(next_word(&s)), line = (int)number(next_word(&s));
    auto found = source_numbers.insert({{file, line}, (int)k->sources.size()});
    if (found.second) {
      const std::string &name = module->files[file];
      k->sources.push_back(name.substr(name.rfind('/') + 1) + ":" + std::to_string(line));
    }
    current_source = found.first->second;
  }

  void parse_directive(View s) {
    View rest = s, word = next_word(&rest);
    if (word == ".reg") {
      Type type = type_named(std::string(next_word(&rest).substr(1)));
      for (View item : items_of(rest)) {
        size_t angle = item.find('<');
        int count = angle == View::npos ? 1 : (int)number(item.substr(angle + 1));
        Range range = {next_place, count, type};
        for (int i = 0; i < count; i++) new_place(type);
        (angle == View::npos ? scopes.back().names : scopes.back().ranges)[item.substr(0, angle)] = range;
      }
    } else if (word == ".shared" || word == ".local") {
      Variable v = variable_of(rest);
      add_variable(v, word == ".shared" ? &k->static_shared : &k->local_bytes);
    } else if (word != ".pragma") cannot(s, "this directive is not known to the interpreter", "");
  }
  void add_variable(const Variable &v, size_t *total) {
    *total = up_to(*total, v.align);
    symbols[v.name] = *total;
    *total += v.bytes;
  }

  // Guard, opcode, operands.
  void parse_instruction(View s) {
    View rest = s;
    Instruction i = {};
    i.text = s, i.guard = i.mask = -1, i.source = current_source;
    if (rest.front() == '@') {
      rest.remove_prefix(1);
      if (rest.front() == '!') i.guard_negated = true, rest.remove_prefix(1);
      i.guard = register_named(next_word(&rest)).place;
    }
    Opcode op;
    rest = trimmed(rest);
    size_t end = 0;
    while (end < rest.size() && !is_space(rest[end]) && rest[end] != '{') end++;
    for (size_t begin = 0; begin <= end;) {
      size_t dot = std::min(rest.find('.', begin), end);
      op.part.emplace_back(rest.substr(begin, dot - begin));
      begin = dot + 1;
    }
    View target;
    std::vector<Operand> operands;
    for (View item : items_of(rest.substr(end))) {
      if (op.part[0] == "bra") target = item;
      else add_operand(item, s, &operands);
    }
    if (operands.size() > MOST_OPERANDS) { cannot(s, "more operands than the interpreter knows of", ""); return; }
    for (const Operand &o : operands) op.declared.push_back(o.kind == Operand::REGISTER || o.kind == Operand::ADDRESS ? o.type : NO_TYPE);
    std::vector<Type> types(operands.size(), NO_TYPE);
    if (!choose(op, &i, &types)) { cannot(s, "this instruction is not known to the interpreter; dev/cuda_on_cpu/ptx_ops.cpp is the place to add it", ""); return; }
    i.operands = (int)operands.size(), addresses = 0;
    for (size_t n = 0; n < operands.size(); n++) i.operand[n] = place_operand(operands[n], types[n], &i);
    if (i.mask >= 0) i.mask = i.operand[i.mask];
    k->instructions.push_back(i);
    targets.push_back(target);
  }

  void add_operand(View item, View statement, std::vector<Operand> *to) {
    size_t bar = item.find('|');
    if (item.front() == '{') for (View part : items_of(item.substr(1, item.size() - 2))) add_operand(part, statement, to);
    else if (bar != View::npos) add_operand(trimmed(item.substr(0, bar)), statement, to), add_operand(trimmed(item.substr(bar + 1)), statement, to);
    else if (item.front() == '[') to->push_back(address_of(item.substr(1, item.size() - 2), statement));
    else to->push_back(operand_of(item, statement));
  }
  Operand address_of(View s, View statement) {
    size_t plus = s.find('+');
    Operand base = operand_of(trimmed(s.substr(0, plus)), statement), o = {};
    o.kind = Operand::ADDRESS, o.place = base.kind == Operand::REGISTER ? base.place : -1, o.type = base.kind == Operand::REGISTER ? base.type : NO_TYPE;
    o.value = base.kind == Operand::NUMBER ? base.value : 0, o.dynamic = base.dynamic;
    if (plus != View::npos) o.value += number(trimmed(s.substr(plus + 1)));
    return o;
  }

  struct Named { int place; Type type; };
  Named register_named(View s) {
    for (size_t n = scopes.size(); n-- > 0;) {
      auto found = scopes[n].names.find(s);
      if (found != scopes[n].names.end()) return {found->second.place, found->second.type};
      size_t digits = s.size();
      while (digits > 0 && isdigit((unsigned char)s[digits - 1])) digits--;
      if (digits == s.size()) continue;
      auto range = scopes[n].ranges.find(s.substr(0, digits));
      int index = (int)number(s.substr(digits));
      if (range != scopes[n].ranges.end() && index < range->second.count) {
        Type t = range->second.type;
        return {range->second.place + index * (t == PRED ? 32 : is_wide(t) ? LANES * 8 : LANES * 4), t};
      }
    }
    return {-1, NO_TYPE};
  }
  Operand operand_of(View s, View statement) {
    Operand o = {};
    Named r = register_named(s);
    if (r.place >= 0) { o.kind = Operand::REGISTER, o.place = r.place, o.type = r.type; return o; }
    if (s == "_") { o.kind = Operand::SINK; return o; }
    if (s.front() == '%') { o.kind = Operand::SPECIAL, o.special = special_named(s, statement); return o; }
    o.kind = Operand::NUMBER;
    if (s.size() > 2 && s[0] == '0' && strchr("fFdD", s[1])) o.value = strtoull(std::string(s.substr(2)).c_str(), NULL, 16);
    else if (isdigit((unsigned char)s[0]) || s[0] == '-') o.value = number(s);
    else if (s == "WARP_SZ") o.value = LANES;
    else if (module->dynamic_shared.count(s)) o.dynamic = true;
    else o.value = symbol_named(s, statement);
    return o;
  }
  SpecialRegister special_named(View s, View statement) {
    static const char *const names[] = {"%tid.x", "%tid.y", "%tid.z", "%ntid.x", "%ntid.y", "%ntid.z", "%ctaid.x", "%ctaid.y", "%ctaid.z", "%nctaid.x", "%nctaid.y", "%nctaid.z",
                                        "%laneid", "%warpid", "%lanemask_lt", "%lanemask_le", "%lanemask_gt", "%lanemask_ge", "%lanemask_eq"};
    for (int n = 0; n < SPECIAL_REGISTERS; n++) if (s == names[n]) return (SpecialRegister)n;
    cannot(statement, "this register is neither declared nor a special one that the interpreter knows:", std::string(s));
    return LANEID;
  }
  // Its address in its own space. Shared variables that are declared outside kernels take room only in kernels that use them.
  uint64_t symbol_named(View s, View statement) {
    auto found = symbols.find(s);
    if (found != symbols.end()) return found->second;
    for (const Variable &v : module->shared) if (v.name == s) { add_variable(v, &k->static_shared); return symbols[s]; }
    auto global = module->globals.find(s);
    if (global != module->globals.end()) return (uint64_t)global->second.data.get();
    cannot(statement, "this symbol is declared nowhere:", std::string(s));
    return 0;
  }

  int place_operand(const Operand &o, Type read_as, Instruction *i) {
    if (o.kind == Operand::ADDRESS) {
      i->offset[addresses] = (int64_t)o.value, i->address_wide[addresses] = o.place < 0 || is_wide(o.type);
      if (o.dynamic) dynamic_addresses.push_back({k->instructions.size(), addresses});
      addresses++;
      return o.place >= 0 ? o.place : constant(0, true, false);
    }
    if (o.kind == Operand::REGISTER) return o.place;
    if (o.kind == Operand::SINK) return sink >= 0 ? sink : sink = new_place(B64);
    if (o.kind == Operand::SPECIAL) {
      auto found = specials.insert({o.special, next_place});
      if (found.second) k->specials.push_back({new_place(B32), o.special});
      return found.first->second;
    }
    if (read_as == PRED) return constant(o.value ? ALL_LANES : 0, false, false);
    const int bits = type_bits(read_as);
    return constant(bits >= 64 ? o.value : o.value & (((uint64_t)1 << bits) - 1), is_wide(read_as), o.dynamic);
  }
  int constant(uint64_t value, bool wide, bool dynamic) {
    auto found = constants.insert({{value, wide, dynamic}, next_place});
    if (found.second && dynamic) dynamic_constants.push_back(k->constants.size());
    if (found.second) k->constants.push_back({new_place(wide ? B64 : B32), value, wide});
    return found.first->second;
  }

  void finish() {
    Instruction end = {};
    end.flow = RETURN, end.guard = end.mask = -1, end.text = "(end of the kernel)";
    k->instructions.push_back(end);
    for (size_t n = 0; n < targets.size(); n++) {
      if (targets[n].empty()) continue;
      auto label = labels.find(targets[n]);
      if (label == labels.end()) cannot(k->instructions[n].text, "there is no such label", "");
      else k->instructions[n].target = label->second;
    }
    size_t align = 16;
    for (const auto &v : module->dynamic_shared) align = std::max(align, v.second);
    k->dynamic_shared_at = up_to(k->static_shared, align);
    for (size_t n : dynamic_constants) k->constants[n].value += k->dynamic_shared_at;
    for (auto a : dynamic_addresses) k->instructions[a.first].offset[a.second] += (int64_t)k->dynamic_shared_at;
    k->register_bytes = (size_t)next_place;
  }
};
}  // namespace

std::string place_of(const Instruction &i) {
  if (i.text.data() < module->text.data() || i.text.data() >= module->text.data() + module->text.size()) return std::string(i.text);
  size_t line = 1;
  for (const char *p = module->text.data(); p < i.text.data(); p++) line += *p == '\n';
  std::string text(i.text);
  for (char &c : text) if (is_space(c)) c = ' ';
  return module->path.substr(module->path.rfind('/') + 1) + ":" + std::to_string(line) + ": " + text;
}

bool in_module_variable(uint64_t address, size_t bytes) {
  for (const auto &g : module->globals) {
    const uint64_t into = address - (uint64_t)g.second.data.get();
    if (into < g.second.bytes && g.second.bytes - into >= bytes) return true;
  }
  return false;
}

const Kernel *find_kernel(const std::string &mangled) {
  static std::once_flag once;
  std::call_once(once, [] { if (const char *path = getenv("GPT_CUDA_PTX")) read_module(path); });
  if (!module) return NULL;
  auto entry = module->entries.find(mangled);
  if (entry == module->entries.end()) return NULL;
  std::lock_guard<std::mutex> lock(module->parsing);
  std::unique_ptr<Kernel> &kernel = module->kernels[mangled];
  if (!kernel) {
    kernel.reset(new Kernel());
    kernel->name = mangled;
    kernel->sources.push_back("?");
    KernelParser(kernel.get()).parse(entry->second);
  }
  return kernel.get();
}
}  // namespace ptx
