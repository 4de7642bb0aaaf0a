// flags.c: owns what is derived from the one flag table of flags.h: parsing, config files, help. Tests: tests/test_flags.c
#include "flags.h"
#include "machine.h"  // machine_cores
#include <errno.h>    // errno
#include <math.h>     // INFINITY, isfinite
#include <stdlib.h>   // strtod, strtoll
#include <string.h>   // strcmp

typedef enum { TYPE_INT, TYPE_REAL, TYPE_TEXT, TYPE_BOOL, TYPE_SWITCH, TYPE_WORD, TYPE_LIST } Type;

typedef struct {
  Type type;
  const char *name, *standard;   // default as text; NULL: not set
  double low, high;
  const char *words;             // of TYPE_WORD, separated by |
  unsigned commands;
  ResumeRule rule;
  const char *group, *help;
  size_t offset;                 // of its field in Options
} Flag;

static const Flag flags[FLAG_COUNT] = {
#define FLAG_ROW(type, field, name, standard, low, high, words, commands, rule, group, help) \
  {TYPE_##type, name, standard, low, high, words, commands, rule, group, help, offsetof(Options, field)},
  FLAGS(FLAG_ROW)
#undef FLAG_ROW
};

const char *flag_name(int flag) { return flags[flag].name; }

int text_threads(const Options *o) { return o->threads == AUTO_INT ? machine_cores() : (int)o->threads; }

static int64_t *int_field(Options *o, const Flag *f) { return (int64_t *)((char *)o + f->offset); }
static double *real_field(Options *o, const Flag *f) { return (double *)((char *)o + f->offset); }
static const char **text_field(Options *o, const Flag *f) { return (const char **)((char *)o + f->offset); }

// ---- numbers ----

// k, M and G move the decimal point, and strtod does that exactly (8795.8G is whole, 8795.8 x 1e9 in doubles is not); the
// binary suffixes are powers of two, and a product with one is exact.
bool parse_number(const char *text, bool whole, double *value, int64_t *integer) {
  static const struct { const char *suffix, *exponent; double factor; } suffixes[] = {
    {"", "", 1}, {"k", "e3", 1}, {"M", "e6", 1}, {"G", "e9", 1}, {"Ki", "", 1024}, {"Mi", "", 1048576}, {"Gi", "", 1073741824}};
  size_t n = strspn(text, "+-0123456789.eE"), i = 0;   // so no inf, nan, 0x, blanks
  char digits[64], *end;
  while (i < ARRAY_LEN(suffixes) && strcmp(text + n, suffixes[i].suffix)) i++;
  if (n == 0 || n > sizeof digits - 4 || i == ARRAY_LEN(suffixes)) return false;
  snprintf(digits, sizeof digits, "%.*s%s", (int)n, text, suffixes[i].exponent);
  double x = strtod(digits, &end) * suffixes[i].factor;
  if (*end || !isfinite(x)) return false;
  *value = x;
  if (!whole) return true;
  if (!*suffixes[i].suffix && strspn(text, "+-0123456789") == n) {   // digits alone: exact beyond 2^53
    errno = 0;
    *integer = strtoll(text, NULL, 10);
    return errno == 0;
  }
  if (x != floor(x) || fabs(x) >= 9.2e18) return false;
  *integer = (int64_t)x;
  return true;
}

static const char *number_text(double x, char text[32]) {
  if (x == floor(x) && fabs(x) < 1e15) snprintf(text, 32, "%.0f", x);
  else for (int digits = 1; digits <= 17; digits++) { snprintf(text, 32, "%.*g", digits, x); if (strtod(text, NULL) == x) break; }
  return text;
}

// ---- one value ----

static int64_t word_place(const Flag *f, const char *value) {
  int64_t place = 0;
  for (const char *p = f->words;; place++) {
    size_t n = strcspn(p, "|");
    if (strlen(value) == n && !strncmp(p, value, n)) return place;
    if (!p[n]) return -1;
    p += n + 1;
  }
}

// place: where the value stands, for messages: "--lr", or "my.conf line 3: lr".
static void set_number(Options *o, const Flag *f, const char *place, const char *value) {
  double x = 0;
  int64_t integer = 0;
  char low[32], high[32];
  if (f->standard && !strcmp(f->standard, "auto") && !strcmp(value, "auto")) {
    if (f->type == TYPE_INT) *int_field(o, f) = AUTO_INT; else *real_field(o, f) = AUTO_REAL;
    return;
  }
  if (!parse_number(value, f->type == TYPE_INT, &x, &integer))
    fail(EXIT_REQUEST, "%s %s: is no %s; examples: 64, 3e-4, 100k, 2Gi", place, value, f->type == TYPE_INT ? "whole number (or it is too large)" : "number");
  double compare = f->type == TYPE_INT ? (double)integer : x;
  if (!(compare >= f->low && compare <= f->high))
    fail(EXIT_REQUEST, "%s %s: must be from %s to %s", place, value, number_text(f->low, low), number_text(f->high, high));
  if (f->type == TYPE_INT) *int_field(o, f) = integer; else *real_field(o, f) = x;
}

static void set_value(Options *o, const Flag *f, const char *place, const char *value) {
  switch (f->type) {
    case TYPE_INT: case TYPE_REAL: set_number(o, f, place, value); break;
    case TYPE_TEXT: *text_field(o, f) = value; break;
    case TYPE_BOOL: case TYPE_SWITCH:
      if (strcmp(value, "on") && strcmp(value, "off")) fail(EXIT_REQUEST, "%s %s: must be on or off", place, value);
      *int_field(o, f) = !strcmp(value, "on");
      break;
    case TYPE_WORD:
      if (word_place(f, value) < 0) fail(EXIT_REQUEST, "%s %s: must be one of %s", place, value, f->words);
      *int_field(o, f) = word_place(f, value);
      break;
    case TYPE_LIST:
      o->add_special = xrealloc(o->add_special, o->list_count + 1, sizeof *o->add_special);
      o->add_special[o->list_count++] = value;
      break;
  }
}

// ---- the command line ----

// The row of this name for the command, or -1.
static int find_flag(const char *name, size_t n, unsigned command) {
  for (int i = 0; i < FLAG_COUNT; i++)
    if ((flags[i].commands & command) && strlen(flags[i].name) == n && !strncmp(flags[i].name, name, n)) return i;
  return -1;
}

static const char *const command_names[] = {"train", "sample", "eval", "tokenizer train", "tokenizer encode", "tokenizer decode", "tokenizer info",
  "data build", "data check", "data info", "report", "plan", "doctor", "bench train", "bench gemm", "bench attention", "bench tokenizer"};

static const char *nearest_flag(const char *name, unsigned command) {
  const char *names[FLAG_COUNT];
  size_t count = 0;
  for (int i = 0; i < FLAG_COUNT; i++) if (flags[i].commands & command) names[count++] = flags[i].name;
  return nearest(name, names, count);
}

static _Noreturn void unknown_flag(const char *name, unsigned command, const char *command_name) {
  const char *near = nearest_flag(name, command);
  int other = find_flag(name, strlen(name), ~command);
  if (other >= 0) {
    size_t bit = 0;
    while (!(flags[other].commands >> bit & 1)) bit++;
    fail(EXIT_REQUEST, "--%s is a flag of gpt %s, not of gpt %s%s%s; see gpt help %s", name, bit < ARRAY_LEN(command_names) ? command_names[bit] : "?", command_name, near ? "; the nearest here is --" : "", near ? near : "", command_name);
  }
  fail(EXIT_REQUEST, "--%s: no such flag%s%s; see gpt help %s", name, near ? "; did you mean --" : "", near ? near : "", command_name);
}

// The name of a flag of any command: what a forgotten value lets slip into its place.
static bool is_flag(const char *text) {
  return !strncmp(text, "--", 2) && find_flag(text + 2, strcspn(text + 2, "="), ~0u) >= 0;
}

// Reads argv[*i] (and its value) as a flag.
static void parse_flag(Options *o, const char *command_name, int argc, char **argv, int *i) {
  const char *arg = argv[*i] + 2, *equals = strchr(arg, '=');
  size_t n = equals ? (size_t)(equals - arg) : strlen(arg);
  int flag = find_flag(arg, n, o->command);
  if (flag < 0) {
    char *name = format("%.*s", (int)n, arg);
    unknown_flag(name, o->command, command_name);
  }
  const Flag *f = &flags[flag];
  if (o->given[flag] && f->type != TYPE_LIST) fail(EXIT_REQUEST, "--%s is given twice; give it once", f->name);
  o->given[flag] = true;
  char *place = format("--%s", f->name);   // never freed, as little as the command line
  if (equals) { set_value(o, f, place, equals + 1); return; }
  if (f->type == TYPE_SWITCH) { *int_field(o, f) = 1; return; }
  if (*i + 1 >= argc) fail(EXIT_REQUEST, "--%s needs a value", f->name);
  const char *value = argv[++*i];
  if (is_flag(value)) fail(EXIT_REQUEST, "--%s needs a value and %s is a flag; if it is meant as text: --%s=%s", f->name, value, f->name, value);
  set_value(o, f, place, value);
}

// `auto`, said in so many words, is the same as nothing said.
static void forget_auto(Options *o) {
  for (int i = 0; i < FLAG_COUNT; i++) {
    const Flag *f = &flags[i];
    if ((f->type == TYPE_INT && *int_field(o, f) == AUTO_INT) || (f->type == TYPE_REAL && *real_field(o, f) == AUTO_REAL)) o->given[i] = false;
  }
}

static bool is_length(int flag) { return flag == FLAG_steps || flag == FLAG_tokens || flag == FLAG_epochs || flag == FLAG_minutes; }

void options_parse(Options *o, unsigned command, const char *command_name, int argc, char **argv) {
  *o = (Options){.command = command};
  for (int i = 0; i < FLAG_COUNT; i++) if (flags[i].standard) set_value(o, &flags[i], flags[i].name, flags[i].standard);
  o->args = xcalloc((size_t)argc + 1, sizeof *o->args);
  bool only_args = false;
  for (int i = 0; i < argc; i++) {
    if (!only_args && !strcmp(argv[i], "--")) only_args = true;
    else if (!only_args && !strncmp(argv[i], "--", 2)) parse_flag(o, command_name, argc, argv, &i);
    else if (!only_args && argv[i][0] == '-' && argv[i][1]) fail(EXIT_REQUEST, "%s: flags are long, --name; see gpt help %s", argv[i], command_name);
    else o->args[o->arg_count++] = argv[i];
  }
  if (o->arg_count && o->given[FLAG_text]) fail(EXIT_REQUEST, "--text %s and TEXT %s are both given: take one", o->text, o->args[0]);
  if (o->config) options_read_config(o, o->config);
  forget_auto(o);
  if ((o->given[FLAG_out] && o->out && !*o->out) || (o->given[FLAG_file_out] && o->file_out && !*o->file_out)) fail(EXIT_REQUEST, "--out: the name is empty; name what to write");
}

// ---- config files ----

// A value that blanks, line ends or quotes would change stands in quotes, with \n \r \t \" \\ as in JSON.
static bool needs_quotes(const char *text) {
  size_t n = strlen(text);
  return n == 0 || strpbrk(text, "\n\r\t") || *text == ' ' || *text == '"' || text[n - 1] == ' ';
}

static const char escaped[] = "\n\r\t\"\\", escapes[] = "nrt\"\\";

static void append_quoted(const char *text, Buffer *out) {
  buffer_append(out, "\"", 1);
  for (; *text; text++) {
    const char *place = strchr(escaped, *text);
    if (place) buffer_printf(out, "\\%c", escapes[place - escaped]);
    else buffer_append(out, text, 1);
  }
  buffer_append(out, "\"", 1);
}

// In place: "a\nb" with its quotes becomes what it stands for; false if it is no such text.
static bool unquote(char *text) {
  char *to = text;
  for (const char *from = text + 1;; from++) {
    const char *place;
    if (!*from) return false;
    if (*from == '"') { *to = 0; return !from[1]; }
    if (*from != '\\') { *to++ = *from; continue; }
    from++;
    if (!*from || !(place = strchr(escapes, *from))) return false;
    *to++ = escaped[place - escapes];
  }
}

static char *trim(char *s) {
  while (*s == ' ' || *s == '\t') s++;
  size_t n = strlen(s);
  while (n && (s[n - 1] == ' ' || s[n - 1] == '\t' || s[n - 1] == '\r')) s[--n] = 0;
  return s;
}

void options_read_config(Options *o, const char *path) {
  bool seen[FLAG_COUNT] = {false}, has_length = false;
  for (int i = 0; i < FLAG_COUNT; i++) has_length |= is_length(i) && o->given[i];
  size_t size;
  char *text = read_file(path, "settings", 1 << 24, &size);   // never freed: values point into it
  if (strlen(text) != size) fail(EXIT_REQUEST, "%s: byte %zu is 0: this is no settings file of flag = value lines", path, strlen(text));
  int line = 0;
  char *begin = strncmp(text, "\xEF\xBB\xBF", 3) ? text : text + 3;   // an editor's byte order mark
  for (char *p = begin, *next; p; p = next) {
    line++;
    next = strchr(p, '\n');
    if (next) *next++ = 0;
    char *name = trim(p), *equals = strchr(name, '=');
    if (!*name || *name == '#') continue;
    if (!equals) fail(EXIT_REQUEST, "%s line %d: \"%s\" is not of the form flag = value", path, line, name);
    *equals = 0;
    name = trim(name);
    char *value = trim(equals + 1);
    if (!strncmp(name, "--", 2)) name += 2;
    int flag = find_flag(name, strlen(name), o->command);
    if (flag == FLAG_config) fail(EXIT_REQUEST, "%s line %d: a settings file cannot name another", path, line);
    if (flag < 0) {
      const char *near = nearest_flag(name, o->command);
      fail(EXIT_REQUEST, "%s line %d: %s is no flag of this command%s%s", path, line, name, near ? "; did you mean " : "", near ? near : "");
    }
    if (seen[flag] && flags[flag].type != TYPE_LIST) fail(EXIT_REQUEST, "%s line %d: %s is given twice; give it once", path, line, name);
    seen[flag] = true;
    if (o->given[flag] || (has_length && is_length(flag))) { seen[flag] = o->given[flag]; continue; }   // the command line wins
    if (*value == '"' && !unquote(value)) fail(EXIT_REQUEST, "%s line %d: %s: the quotes do not close at the end of the line", path, line, name);
    set_value(o, &flags[flag], format("%s line %d: %s", path, line, name), value);
  }
  for (int i = 0; i < FLAG_COUNT; i++) o->given[i] |= seen[i];
}

static void append_value(const Options *o, const Flag *f, Buffer *out) {
  Options *w = (Options *)(uintptr_t)o;
  char number[32];
  switch (f->type) {
    case TYPE_INT: buffer_printf(out, "%lld", (long long)*int_field(w, f)); break;
    case TYPE_REAL: buffer_printf(out, "%s", number_text(*real_field(w, f), number)); break;
    case TYPE_TEXT:
      if (needs_quotes(*text_field(w, f))) append_quoted(*text_field(w, f), out);
      else buffer_printf(out, "%s", *text_field(w, f));
      break;
    case TYPE_BOOL: case TYPE_SWITCH: buffer_printf(out, "%s", *int_field(w, f) ? "on" : "off"); break;
    case TYPE_WORD: {
      const char *p = f->words;
      for (int64_t place = *int_field(w, f); place > 0; place--) p += strcspn(p, "|") + 1;
      buffer_printf(out, "%.*s", (int)strcspn(p, "|"), p);
      break;
    }
    case TYPE_LIST: break;
  }
}

// Nothing to write: text that is not set, numbers still open.
static bool is_open(const Options *o, const Flag *f) {
  Options *w = (Options *)(uintptr_t)o;
  return f->type == TYPE_LIST || (f->type == TYPE_TEXT && !*text_field(w, f)) || (f->type == TYPE_INT && *int_field(w, f) == AUTO_INT) ||
         (f->type == TYPE_REAL && *real_field(w, f) == AUTO_REAL);
}

bool options_changed(const Options *o, int flag) {
  Buffer value = {0};
  if (is_open(o, &flags[flag])) return false;
  append_value(o, &flags[flag], &value);
  const bool changed = !flags[flag].standard || strcmp(value.data, flags[flag].standard);
  buffer_free(&value);
  return changed;
}

void options_write_config(const Options *o, Buffer *out) {
  for (int i = 0; i < FLAG_COUNT; i++) {
    const Flag *f = &flags[i];
    if (!(f->commands & o->command) || f->rule == NOT_STORED || is_open(o, f)) continue;
    buffer_printf(out, "%s = ", f->name);
    append_value(o, f, out);
    buffer_printf(out, "\n");
  }
}

void options_write_given(const Options *o, Buffer *out) {
  for (int i = 0; i < FLAG_COUNT; i++) {
    if (!o->given[i] || flags[i].rule == NOT_STORED || is_open(o, &flags[i])) continue;
    buffer_printf(out, "%s%s = ", out->len ? ", " : "", flags[i].name);
    append_value(o, &flags[i], out);
  }
}

const char *options_result_changer(const Options *o) {
  for (int i = 0; i < FLAG_COUNT; i++) {
    bool loads = i == FLAG_out || i == FLAG_overwrite || i == FLAG_minutes;
    if (o->given[i] && (flags[i].rule == FIXED || loads)) return flags[i].name;
  }
  return NULL;
}

// ---- help ----

void options_print_help(unsigned command, FILE *out) {
  const char *group = NULL;
  for (int i = 0; i < FLAG_COUNT; i++) {   // groups in the order of their first flag
    if (!(flags[i].commands & command) || !*flags[i].group) continue;
    bool printed = false;
    for (int j = 0; j < i && !printed; j++) printed = (flags[j].commands & command) && !strcmp(flags[j].group, flags[i].group);
    if (printed) continue;
    group = flags[i].group;
    fprintf(out, "\n%s\n", group);
    for (int j = i; j < FLAG_COUNT; j++) {
      const Flag *f = &flags[j];
      if (!(f->commands & command) || strcmp(f->group, group)) continue;
      fprintf(out, "  --%-20s %s", f->name, f->help);
      if (f->standard && f->type != TYPE_SWITCH) fprintf(out, " (%s)", f->standard);
      fprintf(out, "\n");
    }
  }
  fprintf(out, "\nany command\n  --%-20s %s\n", flags[FLAG_config].name, flags[FLAG_config].help);
}
