// stories.c: owns the embedded default corpus: a grammar of English stories, its generator and its exact probabilities.
//
// The grammar is the tables of this file and one rule. A LIST holds rows, a row has named columns, a column is a text. A
// REGISTER belongs to a list. In a text, {register} stands for the first column of the register's row and {register.column}
// for another. Where a register is met for the first time in a story its row is drawn, each row that may be taken being
// equally likely; from then on the row is the same until the story ends. So "{hero}" draws a name, a later "{hero.his}"
// agrees with it, and what the wind did in the fourth sentence is still what it did in the last. Columns may hold references
// themselves: a story is nothing but the row drawn for {story}.
//
// To add a name or a sentence add a row; the rest is counted, and compile() names a row that does not fit.
// Lists whose rows are told again later in a story (the hero, the lost thing, where it was hidden) hold 16 rows, lists whose
// rows are told once hold up to 32: a small model learns to look back for a word far sooner where the words are few.
//
// Promises: a story is a pure function of (seed, index), the same text on every machine; its probability is exact; no text
// has two derivations; at least 100 bits of choice in every story; pronouns agree by construction.
// Tests: tests/test_stories.c
#include "stories.h"

#include "rng.h"        // rng_below, rng_site
#include <assert.h>     // static_assert
#include <math.h>       // log2, INFINITY
#include <stdatomic.h>  // the compiled grammar is published once
#include <stdlib.h>     // free
#include <string.h>     // memcmp, strcspn

// ---- the tables ----

enum { MAX_COLUMNS = 7, MAX_DEPTH = 4 };
typedef struct { const char *column[MAX_COLUMNS]; } Row;

// name, pronouns, possessive, and what to call them.
#define GIRL(name) {{name, "she", "She", "her", "her", "Her", "girl"}}
#define BOY(name) {{name, "he", "He", "him", "his", "His", "boy"}}
static const Row heroes[] = {
  GIRL("Anna"), GIRL("Clara"), GIRL("Ella"), GIRL("Hazel"), GIRL("Kate"), GIRL("Mia"), GIRL("Nora"), GIRL("Rosa"),
  BOY("Adam"), BOY("Carl"), BOY("Felix"), BOY("Jack"), BOY("Leo"), BOY("Max"), BOY("Oscar"), BOY("Tom"),
};
static const Row friends[] = {
  GIRL("Bella"), GIRL("Daisy"), GIRL("Fern"), GIRL("Greta"), GIRL("Lily"), GIRL("Olga"), GIRL("Polly"), GIRL("Tess"),
  BOY("Ben"), BOY("Dan"), BOY("Eric"), BOY("Hugo"), BOY("Ned"), BOY("Paul"), BOY("Sam"), BOY("Toby"),
};

// name, the words before it, the pronoun, the verb that agrees.
#define ONE(name) {{name, "a", "it", "was"}}
#define PAIR(name) {{name, "a pair of", "them", "were"}}
#define SOME(name) {{name, "some", "them", "were"}}
static const Row things[] = {
  ONE("kite"), ONE("drum"), ONE("doll"), ONE("bell"), ONE("lantern"), ONE("whistle"), ONE("flute"), ONE("compass"),
  ONE("trumpet"), ONE("mirror"), ONE("crown"), ONE("clock"), PAIR("boots"), PAIR("skates"), SOME("beads"),
  SOME("marbles"),
};
static const Row traits[] = {
  {{"brave"}}, {{"shy"}}, {{"kind"}}, {{"quiet"}}, {{"clever"}}, {{"cheerful"}}, {{"curious"}}, {{"gentle"}},
  {{"lively"}}, {{"lonely"}}, {{"merry"}}, {{"patient"}}, {{"polite"}}, {{"proud"}}, {{"dreamy"}}, {{"careful"}},
  {{"lazy"}}, {{"wise"}}, {{"bold"}}, {{"calm"}}, {{"tidy"}}, {{"loyal"}}, {{"noisy"}}, {{"funny"}}, {{"friendly"}},
  {{"honest"}}, {{"happy"}}, {{"modest"}}, {{"silly"}}, {{"strong"}}, {{"sweet"}}, {{"grumpy"}},
};
static const Row looks[] = {
  {{"little"}}, {{"big"}}, {{"fat"}}, {{"thin"}}, {{"fluffy"}}, {{"dusty"}}, {{"muddy"}}, {{"hungry"}}, {{"sleepy"}},
  {{"busy"}}, {{"quick"}}, {{"gruff"}}, {{"young"}}, {{"smart"}}, {{"hairy"}}, {{"shaggy"}}, {{"skinny"}},
  {{"tall"}}, {{"short"}}, {{"lame"}}, {{"wild"}}, {{"tame"}}, {{"wet"}}, {{"dirty"}}, {{"clean"}}, {{"nosy"}},
  {{"greedy"}}, {{"jolly"}}, {{"stout"}}, {{"slim"}}, {{"fierce"}}, {{"plump"}},
};
static const Row colours[] = {
  {{"red"}}, {{"blue"}}, {{"green"}}, {{"yellow"}}, {{"white"}}, {{"black"}}, {{"brown"}}, {{"pink"}}, {{"purple"}},
  {{"grey"}}, {{"silver"}}, {{"golden"}}, {{"striped"}}, {{"spotted"}}, {{"shiny"}}, {{"painted"}}, {{"wooden"}},
  {{"tin"}}, {{"copper"}}, {{"tiny"}}, {{"huge"}}, {{"round"}}, {{"broken"}}, {{"rusty"}}, {{"plain"}}, {{"heavy"}},
  {{"pretty"}}, {{"small"}}, {{"large"}}, {{"lovely"}}, {{"magic"}}, {{"fine"}},
};
static const Row places[] = {
  {{"windmill"}}, {{"castle"}}, {{"bridge"}}, {{"harbour"}}, {{"market"}}, {{"forest"}}, {{"river"}}, {{"lake"}},
  {{"meadow"}}, {{"garden"}}, {{"farm"}}, {{"chapel"}}, {{"beach"}}, {{"orchard"}}, {{"valley"}}, {{"station"}},
  {{"school"}}, {{"museum"}}, {{"tower"}}, {{"park"}}, {{"bakery"}}, {{"library"}}, {{"palace"}}, {{"island"}},
  {{"stable"}}, {{"mill"}}, {{"theatre"}}, {{"village"}}, {{"temple"}}, {{"canal"}}, {{"hill"}}, {{"cave"}},
};
static const Row relatives[] = {
  {{"mother"}}, {{"father"}}, {{"grandmother"}}, {{"grandfather"}}, {{"aunt"}}, {{"uncle"}}, {{"sister"}},
  {{"brother"}}, {{"cousin"}}, {{"teacher"}}, {{"neighbour"}}, {{"godmother"}}, {{"godfather"}}, {{"nurse"}},
  {{"stepmother"}}, {{"stepfather"}},
};
static const Row boxes[] = {
  {{"box"}}, {{"drawer"}}, {{"chest"}}, {{"jar"}}, {{"trunk"}}, {{"basket"}}, {{"bag"}}, {{"cupboard"}}, {{"case"}},
  {{"sack"}}, {{"bowl"}}, {{"bucket"}}, {{"crate"}}, {{"cabinet"}}, {{"suitcase"}}, {{"hamper"}},
};
static const Row finds[] = {
  {{"nail"}}, {{"spoon"}}, {{"feather"}}, {{"leaf"}}, {{"coin"}}, {{"bone"}}, {{"pebble"}}, {{"rope"}}, {{"sock"}},
  {{"stick"}}, {{"cork"}}, {{"rag"}}, {{"brick"}}, {{"button"}}, {{"pin"}}, {{"comb"}}, {{"key"}}, {{"fork"}},
  {{"string"}}, {{"plate"}}, {{"bottle"}}, {{"shoe"}}, {{"thimble"}}, {{"needle"}}, {{"pencil"}}, {{"brush"}},
  {{"chain"}}, {{"hammer"}}, {{"screw"}}, {{"candle"}}, {{"twig"}}, {{"cone"}},
};
static const Row foods[] = {
  {{"bread"}}, {{"cheese"}}, {{"honey"}}, {{"cake"}}, {{"soup"}}, {{"jam"}}, {{"rice"}}, {{"corn"}}, {{"butter"}},
  {{"pie"}}, {{"toast"}}, {{"nuts"}}, {{"berries"}}, {{"plums"}}, {{"carrots"}}, {{"milk"}}, {{"apples"}},
  {{"grapes"}}, {{"beans"}}, {{"cherries"}}, {{"cream"}}, {{"fudge"}}, {{"ham"}}, {{"lemons"}}, {{"melon"}},
  {{"noodles"}}, {{"pears"}}, {{"peas"}}, {{"pudding"}}, {{"salad"}}, {{"syrup"}}, {{"tea"}},
};
static const Row feelings[] = {
  {{"sad"}}, {{"angry"}}, {{"upset"}}, {{"worried"}}, {{"sorry"}}, {{"gloomy"}}, {{"tired"}}, {{"cross"}},
  {{"puzzled"}}, {{"scared"}}, {{"unhappy"}}, {{"hurt"}}, {{"glum"}}, {{"miserable"}}, {{"nervous"}}, {{"furious"}},
};

// A place to look in, and the words for looking there.
static const Row spots[] = {
  {{"bench", "under the bench"}}, {{"barrel", "under the barrel"}}, {{"ladder", "under the ladder"}},
  {{"cart", "under the cart"}}, {{"log", "under the log"}}, {{"oak", "under the oak"}},
  {{"hedge", "behind the hedge"}}, {{"fence", "behind the fence"}}, {{"wall", "behind the wall"}},
  {{"gate", "behind the gate"}}, {{"haystack", "behind the haystack"}}, {{"well", "beside the well"}},
  {{"wheel", "beside the wheel"}}, {{"stone", "beside the stone"}}, {{"pump", "beside the pump"}},
  {{"pond", "beside the pond"}},
};
static const Row animals[] = {
  {{"owl", "hooted"}}, {{"duck", "quacked"}}, {{"frog", "croaked"}}, {{"mouse", "squeaked"}}, {{"dog", "barked"}},
  {{"cat", "purred"}}, {{"crow", "cawed"}}, {{"horse", "neighed"}}, {{"lamb", "bleated"}}, {{"cow", "mooed"}},
  {{"hen", "clucked"}}, {{"donkey", "brayed"}}, {{"pigeon", "cooed"}}, {{"bear", "growled"}}, {{"pig", "grunted"}},
  {{"snake", "hissed"}},
};

// The weather and what one wears in it.
static const Row weathers[] = {
  {{"sunny", "hat"}}, {{"rainy", "raincoat"}}, {{"snowy", "scarf"}}, {{"windy", "jacket"}}, {{"foggy", "cloak"}},
  {{"frosty", "mittens"}}, {{"stormy", "hood"}}, {{"chilly", "sweater"}}, {{"cloudy", "cap"}}, {{"hot", "sandals"}},
  {{"damp", "coat"}}, {{"misty", "shawl"}}, {{"bright", "shirt"}}, {{"dark", "vest"}}, {{"cool", "cardigan"}},
  {{"freezing", "muffler"}},
};

// How the thing was lost; the helper's account of the same; who it was.
static const Row losses[] = {
  {{"the wind blew {thing.it} away", "The wind dropped {thing.it}", "the wind"}},
  {{"a magpie flew off with {thing.it}", "The magpie dropped {thing.it}", "the magpie"}},
  {{"a fox ran off with {thing.it}", "The fox hid {thing.it}", "the fox"}},
  {{"the stream swept {thing.it} away", "The stream left {thing.it}", "the stream"}},
  {{"a puppy ran off with {thing.it}", "The puppy hid {thing.it}", "the puppy"}},
  {{"a thief ran off with {thing.it}", "The thief hid {thing.it}", "the thief"}},
  {{"a goat took {thing.it} away", "The goat left {thing.it}", "the goat"}},
  {{"a monkey took {thing.it} away", "The monkey hid {thing.it}", "the monkey"}},
  {{"a dragon flew off with {thing.it}", "The dragon dropped {thing.it}", "the dragon"}},
  {{"a troll took {thing.it} away", "The troll left {thing.it}", "the troll"}},
  {{"a pirate ran off with {thing.it}", "The pirate hid {thing.it}", "the pirate"}},
  {{"a witch flew off with {thing.it}", "The witch dropped {thing.it}", "the witch"}},
  {{"a giant took {thing.it} away", "The giant left {thing.it}", "the giant"}},
  {{"a wave swept {thing.it} away", "The wave left {thing.it}", "the wave"}},
  {{"a kitten ran off with {thing.it}", "The kitten left {thing.it}", "the kitten"}},
  {{"a gull flew off with {thing.it}", "The gull dropped {thing.it}", "the gull"}},
};

static const Row openings[] = {
  {{"{hero} was a {trait} {hero.child} who lived by the {home}."}},
  {{"Once a {trait} {hero.child} called {hero} lived by the {home}."}},
  {{"By the {home} lived a {trait} {hero.child} called {hero}."}},
  {{"In a house by the {home} lived {hero}, a {trait} {hero.child}."}},
};
static const Row treasures[] = {
  {{"{hero.He} had {thing.a} {colour} {thing} from {hero.his} {giver} and kept {thing.it} in a {box}."}},
  {{"{hero.His} {giver} gave {hero.him} {thing.a} {colour} {thing} in a {box}."}},
  {{"In a {box} {hero.he} kept {thing.a} {colour} {thing} from {hero.his} {giver}."}},
  {{"{hero.His} {giver} bought {hero.him} {thing.a} {colour} {thing} and a {box} to keep {thing.it} in."}},
};
static const Row outings[] = {
  {{"One {weather} day {hero} put on {hero.his} {weather.wear} and took the {thing} to the {place} to meet {friend}."}},
  {{"One {weather} day {hero} put on {hero.his} {weather.wear} and met {friend} at the {place} to show {friend.him} the {thing}."}},
  {{"One {weather} day {hero} and {friend} took the {thing} to the {place}. {hero} wore {hero.his} {weather.wear}."}},
  {{"One {weather} day {friend} asked to see the {thing}. {hero} put on {hero.his} {weather.wear} and ran to the {place}."}},
};
static const Row troubles[] = {
  {{"But {loss}, and {hero} was {feeling}."}},
  {{"There {loss}. How {feeling} {hero} was!"}},
  {{"Then {loss}. \"My {thing}!\" cried {hero}, very {feeling}."}},
  {{"Oh, how {feeling} {hero} was when {loss}!"}},
};
static const Row searches[] = {
  {{"{friend} looked everywhere, but found only a {find} and a {scrap}."}},
  {{"{hero} found a {find} and {friend} found a {scrap}, but no {thing}."}},
  {{"{hero} and {friend} looked for the {thing}, but found only a {find} and a {scrap}."}},
  {{"\"No {thing}!\" said {friend}, who found only a {find} and a {scrap}."}},
};
static const Row helps[] = {
  {{"{friend} gave some {food} to a {look} {animal}. \"{loss.truth} {hide.where},\" {animal.said} the {animal}."}},
  {{"{hero} gave some {food} to a {look} {animal}, and the {animal} {animal.said}, \"{loss.truth} {hide.where}.\""}},
  {{"\"{loss.truth} {hide.where},\" {animal.said} a {look} {animal}, and {friend} gave the {animal} some {food}."}},
  {{"For some {food} a {look} {animal} {animal.said}, \"{loss.truth} {hide.where}.\" It was a clever {animal}."}},
};
static const Row recoveries[] = {
  {{"And there, {hide.where}, {thing.was} the {thing}!"}},
  {{"They ran to the {hide} and found the {thing}."}},
  {{"{friend} looked {hide.where} and found the {thing}."}},
  {{"{hero} ran to the {hide} and took the {thing} from {loss.who}."}},
};
static const Row evenings[] = {
  {{"{hero} put {thing.it} away and shared some {dish} with {friend} and the {animal}."}},
  {{"\"Thank you, {friend}!\" said {hero}, and gave {friend.him} and the {animal} some {dish}."}},
  {{"{hero}, {friend} and the {animal} had some {dish}."}},
  {{"The {animal} and {friend} got some {dish} from {hero}."}},
};
static const Row morals[] = {
  {{"{hero} never forgot that {weather} day by the {hide}."}},
  {{"After that {weather} day {hero} kept away from {loss.who}."}},
  {{"And {hero} always kept the {thing} far from {loss.who}."}},
  {{"{friend} and {hero} still meet by the {hide} every {weather} day."}},
};
static const Row stories[] = {
  {{"{opening} {treasure} {outing} {trouble} {search} {help} {recovery} {evening} {moral}"}},
};

typedef struct { const char *name, *columns; const Row *rows; size_t count; } List;
#define LIST(name, columns) {#name, columns, name, ARRAY_LEN(name)}
static const List lists[] = {
  LIST(stories, "text"), LIST(openings, "text"), LIST(treasures, "text"), LIST(outings, "text"),
  LIST(troubles, "text"), LIST(searches, "text"), LIST(helps, "text"), LIST(recoveries, "text"),
  LIST(evenings, "text"), LIST(morals, "text"),
  LIST(heroes, "name he He him his His child"),
  LIST(friends, "name he He him his His child"),
  LIST(things, "name a it was"),
  LIST(animals, "name said"),
  LIST(weathers, "sky wear"),
  LIST(losses, "what truth who"),
  LIST(spots, "name where"),
  LIST(traits, "word"), LIST(looks, "word"), LIST(colours, "word"), LIST(places, "word"), LIST(relatives, "word"),
  LIST(boxes, "word"), LIST(finds, "word"), LIST(foods, "word"), LIST(feelings, "word"),
};

// What a text may refer to, and the list its row is drawn from. The first is the story itself.
static const struct { const char *name, *list; } registers[] = {
  {"story", "stories"}, {"opening", "openings"}, {"treasure", "treasures"}, {"outing", "outings"}, {"trouble", "troubles"},
  {"search", "searches"}, {"help", "helps"}, {"recovery", "recoveries"}, {"evening", "evenings"}, {"moral", "morals"},
  {"hero", "heroes"}, {"trait", "traits"}, {"home", "places"}, {"giver", "relatives"}, {"thing", "things"}, {"colour", "colours"},
  {"box", "boxes"}, {"weather", "weathers"}, {"friend", "friends"}, {"place", "places"}, {"loss", "losses"}, {"feeling", "feelings"},
  {"find", "finds"}, {"scrap", "finds"}, {"look", "looks"}, {"animal", "animals"}, {"food", "foods"}, {"hide", "spots"}, {"dish", "foods"},
};
enum { LISTS = ARRAY_LEN(lists), REGISTERS = ARRAY_LEN(registers) };

// ---- the tables, compiled ----

// A text is a run of parts: characters as they stand, or a reference to (register, column).
typedef struct { const char *literal; uint16_t length; uint8_t reg, column; } Part;  // literal NULL: a reference
typedef struct { uint32_t first, count; } Text;                                      // parts[first .. first + count)
typedef struct {
  Part *parts;
  Text *texts;                  // of every list: texts[list_text[l] + row * list_columns[l] + column]
  uint32_t list_text[LISTS];
  uint8_t list_columns[LISTS];
  uint8_t register_list[REGISTERS];
  double surprise[257];         // surprise[n] = log2(n)
} Grammar;

static const Text *text_of(const Grammar *g, size_t reg, size_t row, size_t column) {
  size_t list = g->register_list[reg];
  return &g->texts[g->list_text[list] + row * g->list_columns[list] + column];
}

// The place of a word among the blank-separated words, or -1.
static int word_index(const char *words, const char *word, size_t length) {
  for (int i = 0; *words; i++) {
    size_t n = strcspn(words, " ");
    if (n == length && !memcmp(words, word, n)) return i;
    words += n + (words[n] == ' ');
  }
  return -1;
}

static size_t word_count(const char *words) {
  size_t n = 1;
  for (; *words; words++) n += *words == ' ';
  return n;
}

_Noreturn static void bad_row(const List *list, size_t row, const char *what, const char *at, size_t length) {
  fail(EXIT_REQUEST, "stories.c: row %zu of %s %s \"%.*s\": mend the table and build again", row + 1, list->name, what, (int)length, at);
}

// The reference between the braces: register or register.column.
static Part parse_reference(const Grammar *g, const List *list, size_t row, const char *name, size_t length) {
  const char *dot = memchr(name, '.', length);
  size_t head = dot ? (size_t)(dot - name) : length;
  for (size_t r = 0; r < REGISTERS; r++) {
    if (strlen(registers[r].name) != head || memcmp(registers[r].name, name, head)) continue;
    int column = dot ? word_index(lists[g->register_list[r]].columns, dot + 1, length - head - 1) : 0;
    if (column < 0) bad_row(list, row, "names an unknown column", name, length);
    return (Part){.literal = NULL, .length = 0, .reg = (uint8_t)r, .column = (uint8_t)column};
  }
  bad_row(list, row, "names an unknown register", name, length);
}

// Appends the parts of one text; returns how many. With parts NULL it only counts.
static size_t parse_text(const Grammar *g, const List *list, size_t row, const char *text, Part *parts) {
  size_t n = 0;
  while (*text) {
    size_t length = strcspn(text, "{");
    if (length) {
      if (parts) parts[n] = (Part){.literal = text, .length = (uint16_t)length, .reg = 0, .column = 0};
      n++;
      text += length;
    } else {
      length = strcspn(text, "}");
      if (!text[length]) bad_row(list, row, "has a brace that does not close in", text, length);
      Part part = parse_reference(g, list, row, text + 1, length - 1);
      if (parts) parts[n] = part;
      n++;
      text += length + 1;
    }
  }
  return n;
}

static Grammar *compile(void) {
  Grammar *g = xcalloc(1, sizeof *g);
  for (size_t n = 1; n <= 256; n++) g->surprise[n] = log2((double)n);
  size_t text_count = 0;
  for (size_t l = 0; l < LISTS; l++) {
    if (lists[l].count > 255) bad_row(&lists[l], 255, "is one too many for a list; its first column is", lists[l].rows[255].column[0], 40);
    g->list_text[l] = (uint32_t)text_count;
    g->list_columns[l] = (uint8_t)word_count(lists[l].columns);
    text_count += lists[l].count * g->list_columns[l];
  }
  for (size_t r = 0; r < REGISTERS; r++) {
    size_t l = 0;
    while (l < LISTS && strcmp(lists[l].name, registers[r].list)) l++;
    if (l == LISTS) fail(EXIT_REQUEST, "stories.c: register %s draws from %s, which is no list: add it to lists", registers[r].name, registers[r].list);
    g->register_list[r] = (uint8_t)l;
  }
  g->texts = xcalloc(text_count, sizeof *g->texts);
  for (int pass = 0; pass < 2; pass++) {  // count, then place
    size_t part_count = 0;
    for (size_t l = 0; l < LISTS; l++)
      for (size_t row = 0; row < lists[l].count; row++)
        for (size_t column = 0; column < g->list_columns[l]; column++) {
          const char *text = lists[l].rows[row].column[column];
          if (!text) bad_row(&lists[l], row, "lacks a column of", lists[l].columns, strlen(lists[l].columns));
          size_t n = parse_text(g, &lists[l], row, text, pass ? g->parts + part_count : NULL);
          g->texts[g->list_text[l] + row * g->list_columns[l] + column] = (Text){(uint32_t)part_count, (uint32_t)n};
          part_count += n;
        }
    if (!pass) g->parts = xcalloc(part_count, sizeof *g->parts);
  }
  return g;
}

// The compiled grammar, made on first use. Several threads may make it at once; the first one done wins.
static const Grammar *grammar(void) {
  static _Atomic(Grammar *) shared;
  Grammar *g = atomic_load(&shared), *none = NULL;
  if (g) return g;
  g = compile();
  if (atomic_compare_exchange_strong(&shared, &none, g)) return g;
  free(g->parts);
  free(g->texts);
  free(g);
  return none;
}

// The rows register r may draw; taken[row] is set for those another register of its list holds: two places in a story are
// never the same. held[r] is row + 1, or 0.
static size_t rows_free(const Grammar *g, const uint8_t *held, size_t r, bool taken[256]) {
  const List *list = &lists[g->register_list[r]];
  size_t free_rows = list->count;
  memset(taken, 0, list->count);
  for (size_t other = 0; other < REGISTERS; other++)
    if (held[other] && g->register_list[other] == g->register_list[r]) {
      taken[held[other] - 1] = true;
      free_rows--;
    }
  return free_rows;
}

// ---- writing a story ----

typedef struct { Buffer *out; uint64_t seed, index, draws; double log2p; uint8_t held[REGISTERS]; } Writer;
enum { DRAWS_PER_STORY = 256 };  // random words set aside for a story: more than REGISTERS, which draw once each

static void write_text(const Grammar *g, Writer *w, const Text *text) {
  static_assert((int)REGISTERS <= (int)DRAWS_PER_STORY, "a story draws at most once for each register");
  for (size_t i = 0; i < text->count; i++) {
    const Part *part = &g->parts[text->first + i];
    if (part->literal) {
      buffer_append(w->out, part->literal, part->length);
      continue;
    }
    if (!w->held[part->reg]) {
      bool taken[256];
      size_t n = rows_free(g, w->held, part->reg, taken), row = 0;
      size_t skip = rng_below(n, w->seed, 0, rng_site("stories"), w->index * DRAWS_PER_STORY + w->draws++);
      while (taken[row] || skip--) row++;
      w->held[part->reg] = (uint8_t)(row + 1);
      w->log2p -= g->surprise[n];
    }
    write_text(g, w, text_of(g, part->reg, w->held[part->reg] - 1u, part->column));
  }
}

double stories_generate(Buffer *out, uint64_t seed, uint64_t index) {
  const Grammar *g = grammar();
  Writer w = {.out = out, .seed = seed, .index = index};
  w.held[0] = 1;
  write_text(g, &w, text_of(g, 0, 0, 0));
  return w.log2p;
}

// ---- the forward pass: every way to read a text, one character at a time ----

// One way to have read the characters so far: the rows drawn, and the place, as a stack of texts from {story} inwards.
typedef struct {
  double weight;                  // P(this way | characters so far): the weights of all ways add to 1
  double derivations;             // how many derivations this way stands for
  uint8_t held[REGISTERS];        // row + 1, or 0
  uint8_t depth;                  // of the stack; 0: the story is complete
  uint16_t offset;                // characters read of the literal under way
  const Text *text[MAX_DEPTH];
  uint32_t part[MAX_DEPTH];
} Way;
typedef struct { Way *ways; size_t count, capacity; } Ways;
enum { END_OF_STORY = -1 };

static bool same_place(const Way *a, const Way *b) {
  return a->depth == b->depth && a->offset == b->offset && !memcmp(a->held, b->held, sizeof a->held) &&
         !memcmp(a->text, b->text, a->depth * sizeof a->text[0]) && !memcmp(a->part, b->part, a->depth * sizeof a->part[0]);
}

// Two derivations that have come to the same place are one from here on.
static void add_way(Ways *to, const Way *way) {
  for (size_t i = 0; i < to->count; i++)
    if (same_place(&to->ways[i], way)) {
      to->ways[i].weight += way->weight;
      to->ways[i].derivations += way->derivations;
      return;
    }
  if (to->count == to->capacity) {
    to->capacity = MAX((size_t)32, 2 * to->capacity);
    to->ways = xrealloc(to->ways, to->capacity, sizeof *to->ways);
  }
  to->ways[to->count++] = *way;
}

static void enter(Way *way, const Text *text) {
  if (way->depth == MAX_DEPTH) fail(EXIT_REQUEST, "stories.c: texts refer to texts more than %d deep: raise MAX_DEPTH", MAX_DEPTH);
  way->text[way->depth] = text;
  way->part[way->depth++] = 0;
}

// Adds to `to` whatever becomes of this way by reading one more character (or END_OF_STORY); a register met for the first
// time branches into each row it may draw. Changes *way.
static void read_one(const Grammar *g, Way *way, int character, Ways *to) {
  while (way->depth) {
    const Text *text = way->text[way->depth - 1];
    uint32_t *at = &way->part[way->depth - 1];
    if (*at == text->count) { way->depth--; continue; }
    const Part *part = &g->parts[text->first + *at];
    if (part->literal) {
      if ((unsigned char)part->literal[way->offset] != character) return;
      if (++way->offset == part->length) { way->offset = 0; ++*at; }
      add_way(to, way);
      return;
    }
    ++*at;
    if (way->held[part->reg]) { enter(way, text_of(g, part->reg, way->held[part->reg] - 1u, part->column)); continue; }
    bool taken[256];
    size_t n = rows_free(g, way->held, part->reg, taken);
    for (size_t row = 0; row < lists[g->register_list[part->reg]].count; row++) {
      if (taken[row]) continue;
      const Text *drawn = text_of(g, part->reg, row, part->column);
      const Part *first = &g->parts[drawn->first];
      if (drawn->count && first->literal && (unsigned char)first->literal[0] != character) continue;   // spares most copies
      Way branch = *way;
      branch.held[part->reg] = (uint8_t)(row + 1);
      branch.weight /= (double)n;
      enter(&branch, drawn);
      read_one(g, &branch, character, to);
    }
    return;
  }
  if (character == END_OF_STORY) add_way(to, way);
}

double stories_logprob(const char *text, size_t n, double *next, double *derivations) {
  const Grammar *g = grammar();
  Ways now = {0}, then = {0};
  Way start = {.weight = 1, .derivations = 1};
  start.held[0] = 1;
  enter(&start, text_of(g, 0, 0, 0));
  add_way(&now, &start);
  double log2p = 0;
  for (size_t i = 0; i <= n; i++) {
    then.count = 0;
    double weight = 0;
    for (size_t k = 0; k < now.count; k++) read_one(g, &now.ways[k], i < n ? (unsigned char)text[i] : END_OF_STORY, &then);
    for (size_t k = 0; k < then.count; k++) weight += then.ways[k].weight;
    for (size_t k = 0; k < then.count; k++) then.ways[k].weight /= weight;
    double bits = then.count ? log2(weight) : -INFINITY;
    if (next) next[i] = bits;
    log2p += bits;
    Ways swap = now; now = then; then = swap;
  }
  if (derivations) {
    *derivations = 0;
    for (size_t k = 0; k < now.count; k++) *derivations += now.ways[k].derivations;
  }
  free(now.ways);
  free(then.ways);
  return log2p;
}

bool stories_legal(const char *text, size_t n) { return stories_logprob(text, n, NULL, NULL) > -INFINITY; }

// ---- bounds over all stories ----

// The registers that may hold a row where a text begins; the others surely do not.
typedef struct { bool maybe[REGISTERS]; } Held;
typedef struct { double least_bits; size_t longest; } Bounds;

// Bounds of a text met in a state *held, which is brought to where the text ends. Rows are bounded one by one, so two
// columns of a register may be bounded by different rows: the true least is not smaller, the true longest not larger.
static Bounds bounds_of(const Grammar *g, const Text *text, Held *held) {
  Bounds sum = {0, 0};
  for (size_t i = 0; i < text->count; i++) {
    const Part *part = &g->parts[text->first + i];
    if (part->literal) { sum.longest += part->length; continue; }
    const List *list = &lists[g->register_list[part->reg]];
    uint8_t others[REGISTERS] = {0};
    for (size_t r = 0, row = 0; r < REGISTERS; r++)
      if (held->maybe[r] && r != part->reg && &lists[g->register_list[r]] == list) others[r] = (uint8_t)++row;
    bool taken[256];
    double drawn = held->maybe[part->reg] ? 0 : g->surprise[rows_free(g, others, part->reg, taken)];
    held->maybe[part->reg] = true;
    Held after = *held;
    Bounds best = {INFINITY, 0};
    for (size_t row = 0; row < list->count; row++) {
      Held branch = *held;
      Bounds b = bounds_of(g, text_of(g, part->reg, row, part->column), &branch);
      best.least_bits = MIN(best.least_bits, b.least_bits);
      best.longest = MAX(best.longest, b.longest);
      for (size_t r = 0; r < REGISTERS; r++) {
        after.maybe[r] |= branch.maybe[r];
      }
    }
    *held = after;
    sum.least_bits += drawn + best.least_bits;
    sum.longest += best.longest;
  }
  return sum;
}

static Bounds story_bounds(void) {
  const Grammar *g = grammar();
  Held held = {0};
  held.maybe[0] = true;
  return bounds_of(g, text_of(g, 0, 0, 0), &held);
}

size_t stories_longest(void) { return story_bounds().longest; }
double stories_least_bits(void) { return story_bounds().least_bits; }
