// test_flags.c: tests of flags.c: numbers, the command line, settings files, help. The surface of the binary: test_cli.sh.
#include "flags.h"
#include "machine.h"   // machine_cores
#include "test.h"

// Values point into the settings files that were read, as long as the program runs (flags.h): no leak.
const char *__asan_default_options(void);
const char *__asan_default_options(void) { return "detect_leaks=0"; }

static char path[300];   // of a settings file

static void set_file(const char *text) { replace_file(path, text, strlen(text)); }

// Options of `gpt COMMAND words...`; words end with NULL.
static Options parse(unsigned command, const char *const *words) {
  char *argv[64];
  int argc = 0;
  for (; words[argc]; argc++) argv[argc] = (char *)(uintptr_t)words[argc];
  Options o;
  options_parse(&o, command, "train", argc, argv);
  return o;
}
#define PARSE(command, ...) parse(command, (const char *const[]){__VA_ARGS__, NULL})
#define TRAIN(...) PARSE(COMMAND_TRAIN, __VA_ARGS__)

static void forget(Options *o) {
  free(o->args);
  free(o->add_special);
}

// ---- numbers ----

static void numbers_are_read(void) {
  static const struct { const char *text; double value; } good[] = {
    {"0", 0}, {"8", 8}, {"-3", -3}, {"+4", 4}, {"3e-4", 3e-4}, {"1E3", 1000}, {".5", 0.5}, {"5.", 5}, {"100k", 1e5}, {"1.5M", 1.5e6},
    {"2G", 2e9}, {"1Ki", 1024}, {"3Mi", 3145728}, {"2Gi", 2147483648.0}, {"0.25Ki", 256}, {"1e-400", 0}};
  for (size_t i = 0; i < ARRAY_LEN(good); i++) {
    double value = -1;
    int64_t integer = -1;
    CHECK_MSG(parse_number(good[i].text, false, &value, &integer) && value == good[i].value, "%s is read as %g", good[i].text, value);
    bool whole = good[i].value == floor(good[i].value);
    CHECK_MSG(parse_number(good[i].text, true, &value, &integer) == whole, "%s as a whole number", good[i].text);
    if (whole) CHECK_EQ(integer, (int64_t)good[i].value);
  }
  static const char *const bad[] = {"", " ", "8x", "x8", "8 ", " 8", "1e", "0x10", "inf", "-inf", "nan", "infinity", "1e400", "1e308G", "--5", "+-5",
                                    "5kk", "5K", "5m", "5ki", "1,000", "1_000", "-", "+", ".", "e5", "1e5e5", "1.2.3", "8\n", "0b1", "1e+",
                                    "1e18k", "-1e400", "1e400Gi", "k", "Ki", "0x1p3", "1f", "1 k"};
  for (size_t i = 0; i < ARRAY_LEN(bad); i++) {
    double value;
    int64_t integer;
    CHECK_MSG(!parse_number(bad[i], false, &value, &integer) && !parse_number(bad[i], true, &value, &integer), "\"%s\" is read", bad[i]);
  }
}

static void whole_numbers_are_exact(void) {
  static const struct { const char *text; int64_t value; } good[] = {
    {"9007199254740993", 9007199254740993}, {"9223372036854775807", INT64_MAX}, {"-9223372036854775808", INT64_MIN}, {"1e18", 1000000000000000000},
    {"9e18", 9000000000000000000}, {"1.5k", 1500}, {"007", 7},
    {"1.001M", 1001000}, {"4.07k", 4070}, {"8795.8G", 8795800000000}, {"1.023k", 1023}};   // not whole as products of doubles
  double value;
  int64_t integer;
  for (size_t i = 0; i < ARRAY_LEN(good); i++)
    CHECK_MSG(parse_number(good[i].text, true, &value, &integer) && integer == good[i].value, "%s is read as %lld", good[i].text, (long long)integer);
  static const char *const bad[] = {"9223372036854775808", "-9223372036854775809", "1e19", "9.3e18", "-9.3e18", "10000000000G", "9223372036854775807k", "9223372036854775808Gi", "0.5", "1.0001k"};
  for (size_t i = 0; i < ARRAY_LEN(bad); i++) CHECK_MSG(!parse_number(bad[i], true, &value, &integer), "%s is read as %lld", bad[i], (long long)integer);
}

// ---- the command line ----

static void defaults_stand(void) {
  Options o = TRAIN("text.txt");
  CHECK(o.arg_count == 1 && o.command == COMMAND_TRAIN && o.args[1] == NULL);
  CHECK_STR(o.args[0], "text.txt");
  CHECK(o.layers == AUTO_INT && o.lr == AUTO_REAL && o.seed == 1337 && o.val_fraction == 0.1 && o.eps == 1e-8 && o.bias == 1);
  CHECK(o.out == NULL && !o.overwrite && o.family == 0 && o.schedule == SCHEDULE_COSINE && o.device == DEVICE_AUTO && o.keep == 2);
  CHECK_STR(o.tokenizer, "auto");
  for (int i = 0; i < FLAG_COUNT; i++) CHECK_MSG(!o.given[i], "%s is given", flag_name(i));
  forget(&o);
}

static void flags_are_read(void) {
  Options o = TRAIN("a", "--layers", "3", "--lr=3e-4", "b", "--tie", "off", "--overwrite", "--schedule", "wsd", "--out", "--odd", "--tokenizer=", "-",
                    "--family=llama", "--heads=auto", "--min-lr", "auto", "--", "--layers", "-x");
  CHECK(o.layers == 3 && o.lr == 3e-4 && o.tie == 0 && o.overwrite == 1 && o.schedule == SCHEDULE_WSD && o.family == 1);
  CHECK(o.heads == AUTO_INT && o.min_lr == AUTO_REAL && !o.given[FLAG_heads] && !o.given[FLAG_min_lr] && o.given[FLAG_layers] && !o.given[FLAG_bias]);
  CHECK_STR(o.out, "--odd");
  CHECK_STR(o.tokenizer, "");
  static const char *const args[] = {"a", "b", "-", "--layers", "-x"};
  CHECK_EQ(o.arg_count, ARRAY_LEN(args));
  for (size_t i = 0; i < ARRAY_LEN(args); i++) CHECK_STR(o.args[i], args[i]);
  forget(&o);
  o = PARSE(COMMAND_TOKENIZER_TRAIN, "--add-special", "<a>", "--add-special=<b>", "--vocab", "1k", "--max-memory", "2Gi");
  CHECK(o.list_count == 2 && o.vocab == 1000 && o.max_memory == (int64_t)2 << 30);
  CHECK_STR(o.add_special[0], "<a>");
  CHECK_STR(o.add_special[1], "<b>");
  forget(&o);
  o = PARSE(COMMAND_SAMPLE, "--tokens", "7", "--json=off", &"--raw-looking-arg"[2]);   // the same name is another row here
  CHECK(o.sample_tokens == 7 && o.tokens == AUTO_INT && o.json == 0 && o.arg_count == 1);
  forget(&o);
}

static void edges_of_ranges(void) {
  Options o = TRAIN("--layers", "1", "--val-fraction", "0.9", "--dropout", "0", "--beta1", "0.99999", "--steps", "0");
  CHECK(o.layers == 1 && o.val_fraction == 0.9 && o.dropout == 0 && o.beta1 == 0.99999 && o.steps == 0);
  forget(&o);
  o = TRAIN("--layers", "10000", "--seed", "9e18");
  CHECK(o.layers == 10000 && o.seed == 9000000000000000000);
  forget(&o);
  EXPECT_FAIL(2, "--layers 0: must be from 1 to 10000", TRAIN("--layers", "0"));
  EXPECT_FAIL(2, "--layers 10001: must be from 1 to 10000", TRAIN("--layers", "10001"));
  EXPECT_FAIL(2, "--layers -4: must be from 1 to 10000", TRAIN("--layers", "-4"));
  EXPECT_FAIL(2, "--val-fraction 0.91: must be from 0 to 0.9", TRAIN("--val-fraction", "0.91"));
  EXPECT_FAIL(2, "--dropout -0.1: must be from 0 to 0.99", TRAIN("--dropout=-0.1"));
  EXPECT_FAIL(2, "--beta1 1: must be from 0 to 0.99999", TRAIN("--beta1", "1"));
  EXPECT_FAIL(2, "--init-std 0: must be from 1e-06 to 10", TRAIN("--init-std", "0"));
}

static void mistakes_are_named(void) {
  EXPECT_FAIL(2, "--layer: no such flag; did you mean --layers; see gpt help train", TRAIN("--layer", "3"));
  EXPECT_FAIL(2, "--qqqqqqqqqqq: no such flag; see gpt help train", TRAIN("--qqqqqqqqqqq"));
  EXPECT_FAIL(2, "--layer: no such flag", TRAIN("--layer=3"));
  EXPECT_FAIL(2, "--temperature is a flag of gpt sample, not of gpt train", TRAIN("--temperature", "1"));
  EXPECT_FAIL(2, "--layers is a flag of gpt train, not of gpt train", PARSE(COMMAND_SAMPLE, "--layers", "3"));
  EXPECT_FAIL(2, "--order is a flag of gpt data check", PARSE(COMMAND_DATA_INFO, "--order", "on"));
  EXPECT_FAIL(2, "--layers is given twice", TRAIN("--layers", "3", "--layers", "3"));
  EXPECT_FAIL(2, "--overwrite is given twice", TRAIN("--overwrite", "--overwrite"));
  EXPECT_FAIL(2, "--layers 8x: is no whole number (or it is too large); examples: 64", TRAIN("--layers", "8x"));
  EXPECT_FAIL(2, "--layers 2.5: is no whole number", TRAIN("--layers", "2.5"));
  EXPECT_FAIL(2, "--layers : is no whole number", TRAIN("--layers="));
  EXPECT_FAIL(2, "--seed 99999999999999999999: is no whole number (or it is too large)", TRAIN("--seed", "99999999999999999999"));
  EXPECT_FAIL(2, "--lr nan: is no number", TRAIN("--lr", "nan"));
  EXPECT_FAIL(2, "--seed auto: is no whole number", TRAIN("--seed", "auto"));
  EXPECT_FAIL(2, "--layers needs a value", TRAIN("--layers"));
  EXPECT_FAIL(2, "--out needs a value and --steps is a flag; if it is meant as text: --out=--steps", TRAIN("--out", "--steps", "3"));
  EXPECT_FAIL(2, "--out needs a value and --top-k=3 is a flag", TRAIN("--out", "--top-k=3"));
  EXPECT_FAIL(2, "--tie yes: must be on or off", TRAIN("--tie", "yes"));
  EXPECT_FAIL(2, "--overwrite 1: must be on or off", TRAIN("--overwrite=1"));
  EXPECT_FAIL(2, "--schedule cos: must be one of cosine|wsd|linear|constant", TRAIN("--schedule", "cos"));
  EXPECT_FAIL(2, "--schedule cosinee: must be one of", TRAIN("--schedule", "cosinee"));
  EXPECT_FAIL(2, "--schedule : must be one of", TRAIN("--schedule="));
  EXPECT_FAIL(2, "-l: flags are long", TRAIN("-l", "3"));
}

// Every flag of every command: takes its own default, and nothing it does not know.
static void every_row_takes_its_default(void) {
  for (int bit = 0; bit < 15; bit++) {
    Options o = parse(1u << bit, (const char *const[]){NULL});
    for (int i = 0; i < FLAG_COUNT; i++) CHECK(flag_name(i)[0] && !strchr(flag_name(i), ' ') && !strchr(flag_name(i), '='));
    Buffer text = {0};
    options_write_config(&o, &text);
    if (text.len) set_file(text.data); else set_file("");
    Options again = PARSE(1u << bit, "--config", path);
    Buffer second = {0};
    options_write_config(&again, &second);
    CHECK(text.len == second.len && (!text.len || !strcmp(text.data, second.data)));
    buffer_free(&text);
    buffer_free(&second);
    forget(&o);
    forget(&again);
  }
}

// ---- settings files ----

static void settings_are_read(void) {
  set_file("# a comment\n\n  layers = 3  \nlr=3e-4\r\n\t--tie\t=\toff\nout = my run # 1\nseparator = \" a\\n\\\"b\\\\ \\t\\r\"\nschedule = linear\ntext =\noverwrite = on");
  Options o = TRAIN("--config", path, "--lr", "1");
  CHECK(o.layers == 3 && o.lr == 1 && o.tie == 0 && o.schedule == SCHEDULE_LINEAR && o.overwrite == 1);   // the command line wins
  CHECK_STR(o.out, "my run # 1");
  CHECK_STR(o.separator, " a\n\"b\\ \t\r");
  CHECK_STR(o.text, "");
  CHECK(o.given[FLAG_layers] && o.given[FLAG_lr] && o.given[FLAG_tie] && !o.given[FLAG_bias]);
  forget(&o);
  set_file("add-special = <a>\nadd-special = <b>\n");
  o = PARSE(COMMAND_TOKENIZER_TRAIN, "--config", path);
  CHECK(o.list_count == 2 && !strcmp(o.add_special[1], "<b>"));
  forget(&o);
}

static void wrong_settings_are_named(void) {
  static const struct { const char *text, *needle; } wrong[] = {
    {"layers = 3\nlayer = 4\n", "line 2: layer is no flag of this command; did you mean layers"},
    {"layers = 3\n\nlayers = 3\n", "line 3: layers is given twice"},
    {"layers 3\n", "line 1: \"layers 3\" is not of the form flag = value"},
    {"config = x\n", "line 1: a settings file cannot name another"},
    {"layers = x\n", "line 1: layers x: is no whole number"},
    {"\nlayers =\n", "line 2: layers : is no whole number"},
    {"temperature = 1\n", "line 1: temperature is no flag of this command"},
    {"out = \"a\n", "line 1: out: the quotes do not close"},
    {"out = \"a\" b\n", "line 1: out: the quotes do not close"},
    {"out = \"a\\q\"\n", "line 1: out: the quotes do not close"},
    {"out = \"a\\", "line 1: out: the quotes do not close"},
    {" = 3\n", "line 1:  is no flag"},
  };
  for (size_t i = 0; i < ARRAY_LEN(wrong); i++) {
    set_file(wrong[i].text);
    EXPECT_FAIL(2, wrong[i].needle, TRAIN("--config", path));
  }
  replace_file(path, "layers = 3\n\0heads = 2\n", 22);
  EXPECT_FAIL(2, "byte 11 is 0", TRAIN("--config", path));
  EXPECT_FAIL(2, "/no/such: cannot open settings", TRAIN("--config", "/no/such"));
  EXPECT_FAIL(2, "--out: the name is empty", TRAIN("--out", ""));
}

// A length on the command line takes the place of whatever length the file has; `auto` there leaves the file's.
static void one_length(void) {
  set_file("steps = 7\nlayers = 3\n");
  Options o = TRAIN("--config", path, "--epochs", "2");
  CHECK(o.steps == AUTO_INT && !o.given[FLAG_steps] && o.epochs == 2 && o.layers == 3);
  forget(&o);
  o = TRAIN("--config", path);
  CHECK(o.steps == 7 && o.given[FLAG_steps]);
  forget(&o);
  o = TRAIN("--config", path, "--steps", "auto");
  CHECK(o.steps == AUTO_INT && !o.given[FLAG_steps]);
  forget(&o);
}

// What is written can be read again and gives the same, whatever the texts hold.
static void settings_go_around(void) {
  static const char *const texts[] = {"plain", "", " blank before", "blank behind ", "\n\n", "a\nb", "\"", "\"quoted\"", "back\\slash", "\\n", "tab\t",
                                      "# no comment", "a = b", "\r", "caf\xc3\xa9", "-", "\\"};
  for (size_t i = 0; i < ARRAY_LEN(texts); i++) {
    Options o = TRAIN("--separator", texts[i], "--layers", "7", "--lr", "0.1", "--eps=1.2345678901234567e-9", "--tokens-per-step", "1e12", "--seed",
                      "8999999999999999999", "--bias=off", "--schedule=constant", "--keep", "0", "--overfit-batch", "on", "--out", "run9");
    Buffer first = {0}, second = {0};
    options_write_config(&o, &first);
    CHECK(strstr(first.data, "\nlayers = 7\n") && strstr(first.data, "\nschedule = constant\n") && strstr(first.data, "\nbias = off\n"));
    CHECK(!strstr(first.data, "\nout = ") && !strstr(first.data, "config") && !strstr(first.data, "\nheads = "));   // where it goes; still open
    set_file(first.data);
    Options again = TRAIN("--config", path);
    CHECK_STR(again.separator, texts[i]);
    CHECK(again.layers == 7 && again.lr == 0.1 && again.eps == 1.2345678901234567e-9 && again.tokens_per_step == 1000000000000 && again.bias == 0);
    CHECK(again.seed == 8999999999999999999 && again.schedule == SCHEDULE_CONSTANT && again.keep == 0 && again.overfit_batch == 1);
    options_write_config(&again, &second);
    CHECK_STR(first.data, second.data);
    buffer_free(&first);
    buffer_free(&second);
    forget(&o);
    forget(&again);
  }
}

// Beside --resume: what changes the result is named, what does not is taken.
static void changers_are_found(void) {
  static const char *const changes[] = {"--layers=2", "--lr=1", "--seed=5", "--out=x", "--init=x", "--overwrite=on", "--minutes=1", "--tokenizer=char", "--steps=9"};
  for (size_t i = 0; i < ARRAY_LEN(changes); i++) {
    Options o = TRAIN("--resume", "run", changes[i]);
    const char *name = options_result_changer(&o);
    CHECK_MSG(name && !strncmp(name, changes[i] + 2, strlen(name)) && changes[i][2 + strlen(name)] == '=', "%s: found %s", changes[i], name ? name : "none");
    forget(&o);
  }
  Options o = TRAIN("--resume", "run", "--threads=2", "--log-every", "5", "--save-every", "7", "--keep=0", "--trace", "--dry-run", "--device=cpu");
  CHECK(options_result_changer(&o) == NULL);
  forget(&o);
}

// ---- help ----

// Every flag of the command once, none of another, each with its help and default.
static void help_is_whole(void) {
  for (int bit = 0; bit < 15; bit++) {
    FILE *out = fopen(path, "w+");
    options_print_help(1u << bit, out);
    fclose(out);
    size_t n;
    char *text = read_file(path, "help", 1 << 20, &n);
    Options o = parse(1u << bit, (const char *const[]){NULL});
    int shown = 0;
    for (char *p = text; (p = strstr(p, "\n  --")); p++) shown++;
    int expected = 0;
    for (int i = 0; i < FLAG_COUNT; i++) {
      char *line = format("\n  --%-20s ", flag_name(i));
      const char *first = strstr(text, line);
      CHECK_MSG(!first || !strstr(first + 1, line), "--%s twice", flag_name(i));
      free(line);
    }
#define COUNT_ROW(type, field, name, standard, low, high, words, commands, rule, group, help) \
    expected += (commands) >> bit & 1; \
    if ((commands) >> bit & 1) CHECK_MSG(strstr(text, help) != NULL, "the help of --%s is missing", name);
    FLAGS(COUNT_ROW)
    CHECK_EQ(shown, expected);
    forget(&o);
    free(text);
  }
  FILE *out = fopen(path, "w+");
  options_print_help(COMMAND_TRAIN, out);
  fclose(out);
  size_t n;
  char *text = read_file(path, "help", 1 << 20, &n);
  CHECK(!strncmp(text, "\ndata\n  --text", 14) && strstr(text, "(1337)\n") && strstr(text, "\n\nmodel\n") && strstr(text, "\n\nwatch\n"));
  CHECK(!strstr(text, "(off)\n") || strstr(text, "--overfit-batch"));
  CHECK(strstr(text, "  --overwrite            replace the run folder named by --out\n"));     // a switch shows no default
  free(text);
}

// Texts are read by as many threads as were asked for, whatever there is, else by one for each core.
static void threads_of_texts(void) {
  Options o = TRAIN("--threads", "3000");
  CHECK_EQ(text_threads(&o), 3000);
  o = TRAIN("--threads", "auto");
  CHECK_EQ(text_threads(&o), machine_cores());
}

// Other than the standard: a run's config.txt gives every flag.
static void changed_flags(void) {
  set_file("val-fraction = 0.1\nlr = auto\nraw = no\nepochs = 2");
  Options o = TRAIN("--config", path);
  CHECK(!options_changed(&o, FLAG_val_fraction) && !options_changed(&o, FLAG_separator) && !options_changed(&o, FLAG_lr) && !options_changed(&o, FLAG_raw));
  CHECK(!options_changed(&o, FLAG_seed) && options_changed(&o, FLAG_epochs));
  o = TRAIN("--val-fraction", "0.10001", "--separator", "x", "--raw", "u16", "--lr", "1e-4", "--seed", "1337");
  CHECK(options_changed(&o, FLAG_val_fraction) && options_changed(&o, FLAG_separator) && options_changed(&o, FLAG_lr) && options_changed(&o, FLAG_raw) && !options_changed(&o, FLAG_seed));
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  char folder[280];
  test_folder(folder, sizeof folder, "flags");
  snprintf(path, sizeof path, "%s/settings", folder);
  RUN(numbers_are_read);
  RUN(whole_numbers_are_exact);
  RUN(defaults_stand);
  RUN(flags_are_read);
  RUN(edges_of_ranges);
  RUN(mistakes_are_named);
  RUN(every_row_takes_its_default);
  RUN(settings_are_read);
  RUN(wrong_settings_are_named);
  RUN(one_length);
  RUN(threads_of_texts);
  RUN(changed_flags);
  RUN(settings_go_around);
  RUN(changers_are_found);
  RUN(help_is_whole);
  remove_tree(folder);
  return TEST_END();
}
