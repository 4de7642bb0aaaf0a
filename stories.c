// stories.c: owns the embedded default corpus: a grammar of English stories, its generator and its exact probabilities.
//
// The grammar is the tables of this file and one rule. A LIST holds rows, a row has named columns, a column is a text. A
// REGISTER belongs to a list. In a text, {register} stands for the first column of the register's row and
// {register.column} for another. Where a register is met for the first time in a story its row is drawn, each row that may be taken
// being equally likely; from then on the row is the same until the story ends. So "{hero}" draws a name, a later
// "{hero.his}" agrees with it, and what the wind did in the fifth sentence is still what it did in the last.
// Columns may hold references themselves: a story is nothing but the row drawn for {story}.
// To add a name or a sentence add a row; the rest is counted. Compiling the tables at start names a row that does not fit.
//
// What a small model can learn in a minute shaped the sentences (dev/LOG.md): a word that comes back (hero, thing, animal) comes back
// often and has a list of its own, so that one look back at "the last name" finds it; what is said again only once or twice
// (place, weather, thief) returns as another word that follows from it ("market ... stalls"), one of eight such pairs.
//
// Promises: a story is a pure function of (seed, index), the same text on every machine; its probability is exact; no text
// has two derivations; at least 100 bits of choice a story; pronouns agree by construction.
// Tests: tests/test_stories.c
#include "stories.h"

#include <assert.h>     // static_assert
#include <math.h>       // log2, INFINITY
#include <stdatomic.h>  // the compiled grammar is published once
#include <stdlib.h>     // free
#include <string.h>     // memcmp, strlen, strchr

#include "rng.h"  // rng_below, rng_site

// ---- the tables ----

enum { MAX_COLUMNS = 7, MAX_DEPTH = 4 };
typedef struct { const char *column[MAX_COLUMNS]; } Row;

#define GIRL(name) {{name, "she", "She", "her", "her", "Her", "girl"}}
#define BOY(name) {{name, "he", "He", "him", "his", "His", "boy"}}
static const Row people[] = {
  GIRL("Anna"), GIRL("Clara"), GIRL("Daisy"), GIRL("Ella"), GIRL("Fern"), GIRL("Hazel"), GIRL("Kate"), GIRL("Lily"),
  GIRL("Mia"), GIRL("Nora"), GIRL("Olga"), GIRL("Polly"), GIRL("Rosa"), GIRL("Sally"), GIRL("Tess"), GIRL("Zoe"),
  BOY("Adam"), BOY("Ben"), BOY("Carl"), BOY("Dan"), BOY("Felix"), BOY("Hugo"), BOY("Jack"), BOY("Leo"),
  BOY("Max"), BOY("Ned"), BOY("Oscar"), BOY("Paul"), BOY("Sam"), BOY("Toby"), BOY("Victor"), BOY("Yuri"),
};

static const Row things[] = {
  {{"kite"}}, {{"drum"}}, {{"doll"}}, {{"bell"}}, {{"lantern"}}, {{"whistle"}}, {{"flute"}}, {{"puppet"}},
  {{"locket"}}, {{"compass"}}, {{"trumpet"}}, {{"mirror"}}, {{"crown"}}, {{"ball"}}, {{"boat"}}, {{"hoop"}},
};
static const Row colours[] = {
  {{"red"}}, {{"blue"}}, {{"green"}}, {{"yellow"}}, {{"white"}}, {{"black"}}, {{"brown"}}, {{"pink"}},
  {{"purple"}}, {{"grey"}}, {{"silver"}}, {{"golden"}}, {{"striped"}}, {{"spotted"}}, {{"shiny"}}, {{"painted"}},
};
static const Row traits[] = {
  {{"brave"}}, {{"shy"}}, {{"kind"}}, {{"quiet"}}, {{"clever"}}, {{"cheerful"}}, {{"curious"}}, {{"gentle"}},
  {{"lively"}}, {{"lonely"}}, {{"merry"}}, {{"patient"}}, {{"polite"}}, {{"proud"}}, {{"dreamy"}}, {{"careful"}},
};
static const Row homes[] = {
  {{"windmill"}}, {{"castle"}}, {{"bridge"}}, {{"harbour"}}, {{"chapel"}}, {{"farm"}}, {{"inn"}}, {{"tower"}},
  {{"station"}}, {{"bakery"}}, {{"school"}}, {{"library"}}, {{"palace"}}, {{"fountain"}}, {{"museum"}}, {{"dock"}},
};
// Where the story takes place, and what one is among there.
static const Row places[] = {
  {{"forest", "trees"}}, {{"beach", "dunes"}}, {{"market", "stalls"}}, {{"meadow", "flowers"}},
  {{"lake", "reeds"}}, {{"garden", "roses"}}, {{"hill", "rocks"}}, {{"field", "sheaves"}},
};
static const Row relatives[] = {
  {{"mother"}}, {{"father"}}, {{"grandmother"}}, {{"grandfather"}}, {{"aunt"}}, {{"uncle"}}, {{"sister"}}, {{"brother"}},
  {{"cousin"}}, {{"teacher"}}, {{"neighbour"}}, {{"nurse"}}, {{"doctor"}}, {{"baker"}}, {{"tailor"}}, {{"captain"}},
};
static const Row stuffs[] = {
  {{"wooden"}}, {{"tin"}}, {{"leather"}}, {{"paper"}}, {{"glass"}}, {{"straw"}}, {{"velvet"}}, {{"copper"}},
  {{"round"}}, {{"square"}}, {{"tall"}}, {{"flat"}}, {{"heavy"}}, {{"broken"}}, {{"rusty"}}, {{"plain"}},
};
static const Row boxes[] = {
  {{"box"}}, {{"drawer"}}, {{"chest"}}, {{"jar"}}, {{"trunk"}}, {{"basket"}}, {{"bag"}}, {{"cupboard"}},
  {{"case"}}, {{"sack"}}, {{"bowl"}}, {{"bucket"}}, {{"pot"}}, {{"tray"}}, {{"pouch"}}, {{"bin"}},
};
static const Row days[] = {
  {{"Monday"}}, {{"Tuesday"}}, {{"Wednesday"}}, {{"Thursday"}}, {{"Friday"}}, {{"Saturday"}}, {{"Sunday"}}, {{"morning"}},
};
static const Row spots[] = {
  {{"bench"}}, {{"barrel"}}, {{"ladder"}}, {{"cart"}}, {{"log"}}, {{"stone"}}, {{"hedge"}}, {{"fence"}},
  {{"wall"}}, {{"gate"}}, {{"well"}}, {{"haystack"}}, {{"bush"}}, {{"oak"}}, {{"stump"}}, {{"wheel"}},
};
static const Row sides[] = {
  {{"under"}}, {{"behind"}}, {{"beside"}}, {{"near"}},
};
static const Row hides[] = {
  {{"rock"}}, {{"tent"}}, {{"shed"}}, {{"statue"}}, {{"pump"}}, {{"nest"}}, {{"sledge"}}, {{"wagon"}},
  {{"beehive"}}, {{"birch"}}, {{"pine"}}, {{"willow"}}, {{"trough"}}, {{"hut"}}, {{"barn"}}, {{"kennel"}},
};
static const Row finds[] = {
  {{"nail"}}, {{"spoon"}}, {{"feather"}}, {{"leaf"}}, {{"coin"}}, {{"bone"}}, {{"pebble"}}, {{"rope"}},
  {{"sock"}}, {{"stick"}}, {{"cork"}}, {{"rag"}}, {{"brick"}}, {{"button"}}, {{"pin"}}, {{"comb"}},
};
static const Row foods[] = {
  {{"bread"}}, {{"cheese"}}, {{"honey"}}, {{"cake"}}, {{"soup"}}, {{"jam"}}, {{"rice"}}, {{"corn"}},
  {{"butter"}}, {{"pie"}}, {{"toast"}}, {{"nuts"}}, {{"berries"}}, {{"plums"}}, {{"carrots"}}, {{"milk"}},
};
static const Row dishes[] = {
  {{"apples"}}, {{"pears"}}, {{"grapes"}}, {{"cherries"}}, {{"figs"}}, {{"beans"}}, {{"peas"}}, {{"fish"}},
  {{"eggs"}}, {{"porridge"}}, {{"pancakes"}}, {{"cookies"}}, {{"noodles"}}, {{"cream"}}, {{"tea"}}, {{"juice"}},
};
static const Row feelings[] = {
  {{"sad"}}, {{"angry"}}, {{"upset"}}, {{"worried"}}, {{"sorry"}}, {{"gloomy"}}, {{"tired"}}, {{"cross"}},
  {{"puzzled"}}, {{"scared"}}, {{"unhappy"}}, {{"hurt"}}, {{"cold"}}, {{"bored"}}, {{"pale"}}, {{"sick"}},
};
static const Row looks[] = {
  {{"little"}}, {{"big"}}, {{"huge"}}, {{"tiny"}}, {{"fat"}}, {{"thin"}}, {{"fluffy"}}, {{"dusty"}},
  {{"muddy"}}, {{"hungry"}}, {{"lazy"}}, {{"wise"}}, {{"grumpy"}}, {{"noisy"}}, {{"friendly"}}, {{"funny"}},
};

static const Row animals[] = {
  {{"owl", "hooted"}}, {{"duck", "quacked"}}, {{"frog", "croaked"}}, {{"mouse", "squeaked"}}, {{"dog", "barked"}}, {{"cat", "purred"}},
  {{"bee", "buzzed"}}, {{"crow", "cawed"}}, {{"horse", "neighed"}}, {{"lamb", "bleated"}}, {{"cow", "mooed"}}, {{"hen", "clucked"}},
  {{"donkey", "brayed"}}, {{"pigeon", "cooed"}}, {{"bear", "growled"}}, {{"pig", "grunted"}},
};

// What the weather was, what one wears in it, what had become of it by the evening.
static const Row weathers[] = {
  {{"sunny", "hat", "The sun went down"}},   {{"rainy", "raincoat", "The rain stopped"}}, {{"snowy", "scarf", "The snow lay deep"}},
  {{"windy", "jacket", "The wind fell"}},    {{"foggy", "cloak", "The fog lifted"}},      {{"frosty", "mittens", "The frost came back"}},
  {{"stormy", "hood", "The storm passed"}},  {{"chilly", "sweater", "The air grew warm"}},
};

// How the thing was lost; the helper's account of the same; who did it.
static const Row losses[] = {
  {{"the wind blew the {thing} away", "The wind dropped the {thing}", "the wind"}},
  {{"a magpie flew off with the {thing}", "The magpie dropped the {thing}", "the magpie"}},
  {{"a fox ran off with the {thing}", "The fox hid the {thing}", "the fox"}},
  {{"the stream swept the {thing} away", "The stream left the {thing}", "the stream"}},
  {{"a puppy took the {thing} away", "The puppy hid the {thing}", "the puppy"}},
  {{"a thief ran off with the {thing}", "The thief hid the {thing}", "the thief"}},
  {{"a goat took the {thing} away", "The goat left the {thing}", "the goat"}},
  {{"a monkey took the {thing} away", "The monkey left the {thing}", "the monkey"}},
};

static const Row openings[] = {
  {{"{hero} was a {trait} {hero.child} from the {home}."}},
  {{"{hero}, a {trait} {hero.child}, lived by the {home}."}},
  {{"{hero} lived by the {home} and was a {trait} {hero.child}."}},
  {{"{hero} was a {hero.child} from the {home}, and {hero.he} was {trait}."}},
};
static const Row treasures[] = {
  {{"{hero} wanted a {colour} {thing}, and {hero.his} {giver} gave {hero.him} the {thing} in a {stuff} {box}."}},
  {{"{hero.His} {giver} gave {hero} a {colour} {thing}. The {thing} came in a {stuff} {box}."}},
  {{"In a {stuff} {box} {hero} kept a {colour} {thing}. The {thing} was from {hero.his} {giver}."}},
  {{"{hero} got a {colour} {thing} from {hero.his} {giver}. The {thing} lay in a {stuff} {box}."}},
};
static const Row outings[] = {
  {{"One {weather} {day} {hero} put on {hero.his} {weather.wear} and took the {thing} to the {place}."}},
  {{"On a {weather} {day} {hero} took the {thing} to the {place} and wore {hero.his} {weather.wear}."}},
  {{"{hero} took the {thing} to the {place} in {hero.his} {weather.wear} one {weather} {day}."}},
  {{"It was a {weather} {day}. {hero} put on {hero.his} {weather.wear} and carried the {thing} to the {place}."}},
};
static const Row meetings[] = {
  {{"Among the {place.ground} {hero} met a {look} {animal}. {hero} gave the {animal} some {food}."}},
  {{"A {look} {animal} lived among the {place.ground}. {hero} shared some {food} with the {animal}."}},
  {{"{hero} met a {look} {animal} among the {place.ground} and gave the {animal} some {food}."}},
  {{"There was a {look} {animal} among the {place.ground}. The {animal} ate some {food} with {hero}."}},
};
static const Row troubles[] = {
  {{"But {loss}, and {hero} was {feeling}."}},
  {{"Then {loss}. {hero} felt {feeling}."}},
  {{"Suddenly {loss}. How {feeling} {hero} was!"}},
  {{"\"My {thing}!\" cried {hero}, very {feeling}, when {loss}."}},
};
static const Row searches[] = {
  {{"{hero} looked {side} the {spot} and found a {find}. The {animal} looked {other_side} the {other_spot}."}},
  {{"The {animal} found only a {find} {side} the {spot}, and {hero} looked {other_side} the {other_spot}."}},
  {{"{hero} and the {animal} saw a {find} {side} the {spot}, but no {thing} {other_side} the {other_spot}."}},
  {{"{hero} and the {animal} looked {side} the {spot} and {other_side} the {other_spot}, but found only a {find}."}},
};
static const Row helps[] = {
  {{"\"{loss.truth} {hide_side} the {hide},\" {animal.said} the {animal}."}},
  {{"The {animal} {animal.said}: \"{loss.truth} {hide_side} the {hide}.\""}},
  {{"\"{hero},\" {animal.said} the {animal}, \"{loss.who} left the {thing} {hide_side} the {hide}!\""}},
  {{"But the {animal} {animal.said}, \"Look {hide_side} the {hide}, {hero}!\""}},
};
static const Row recoveries[] = {
  {{"{hero} ran there and found the {thing}."}},
  {{"And there was the {thing}!"}},
  {{"{hero} looked, and there was the {thing}."}},
  {{"The {animal} ran there and got the {thing} from {loss.who}."}},
};
static const Row evenings[] = {
  {{"{weather.end}. {hero} thanked the {animal} with some {dish} and went home."}},
  {{"{weather.end} over the {place.ground}, and {hero} ate some {dish} with the {animal}."}},
  {{"{hero} gave the {animal} some {dish} for the {thing}. {weather.end}."}},
  {{"{weather.end}. The {animal} got some {dish}, and {hero} took the {thing} home."}},
};
static const Row morals[] = {
  {{"{hero} never forgot the {animal} among the {place.ground}."}},
  {{"From then on {hero} and the {animal} were friends."}},
  {{"After that {hero} kept the {thing} far from {loss.who}."}},
  {{"{hero} often came back to the {place.ground} to see the {animal}."}},
};
static const Row stories[] = {
  {{"{opening} {treasure} {outing} {meeting} {trouble} {search} {help} {recovery} {evening} {moral}"}},
};

// repeats: two registers of this list may hold the same row (otherwise never, as two friends have two names).
typedef struct { const char *name, *columns; const Row *rows; size_t count; bool repeats; } List;
#define LIST(name, columns, repeats) {#name, columns, name, ARRAY_LEN(name), repeats}
static const List lists[] = {
  LIST(people, "name he He him his His child", false),
  LIST(animals, "name said", false),
  LIST(weathers, "sky wear end", false),
  LIST(losses, "what truth who", false),
  LIST(places, "name ground", false),
  LIST(sides, "word", true),
  LIST(things, "word", false),
  LIST(colours, "word", false),
  LIST(traits, "word", false),
  LIST(homes, "word", false),
  LIST(relatives, "word", false),
  LIST(stuffs, "word", false),
  LIST(boxes, "word", false),
  LIST(days, "word", false),
  LIST(spots, "word", false),
  LIST(hides, "word", false),
  LIST(finds, "word", false),
  LIST(foods, "word", false),
  LIST(dishes, "word", false),
  LIST(feelings, "word", false),
  LIST(looks, "word", false),
  LIST(openings, "text", false),
  LIST(treasures, "text", false),
  LIST(outings, "text", false),
  LIST(meetings, "text", false),
  LIST(troubles, "text", false),
  LIST(searches, "text", false),
  LIST(helps, "text", false),
  LIST(recoveries, "text", false),
  LIST(evenings, "text", false),
  LIST(morals, "text", false),
  LIST(stories, "text", false),
};

// What a text may refer to, and the list its row is drawn from. The first is the story itself.
static const struct { const char *name, *list; } registers[] = {
  {"story", "stories"},
  {"opening", "openings"}, {"treasure", "treasures"}, {"outing", "outings"}, {"meeting", "meetings"}, {"trouble", "troubles"},
  {"search", "searches"}, {"help", "helps"}, {"recovery", "recoveries"}, {"evening", "evenings"}, {"moral", "morals"},
  {"hero", "people"}, {"trait", "traits"}, {"home", "homes"}, {"place", "places"},
  {"thing", "things"}, {"colour", "colours"}, {"giver", "relatives"}, {"stuff", "stuffs"}, {"box", "boxes"},
  {"weather", "weathers"}, {"day", "days"}, {"loss", "losses"}, {"feeling", "feelings"},
  {"side", "sides"}, {"spot", "spots"}, {"find", "finds"}, {"other_side", "sides"}, {"other_spot", "spots"},
  {"look", "looks"}, {"animal", "animals"}, {"food", "foods"}, {"hide_side", "sides"}, {"hide", "hides"}, {"dish", "dishes"},
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

// The rows register r may draw: taken[row] is set for those another register of its list holds. held[r] is row + 1, or 0.
static size_t rows_free(const Grammar *g, const uint8_t *held, size_t r, bool taken[256]) {
  const List *list = &lists[g->register_list[r]];
  size_t free_rows = list->count;
  memset(taken, 0, list->count);
  if (list->repeats) return free_rows;
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

// What is known where a text begins: the registers that surely, and that maybe, hold a row.
typedef struct { bool surely[REGISTERS], maybe[REGISTERS]; } Held;
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
    held->surely[part->reg] = held->maybe[part->reg] = true;
    Held after = *held;
    Bounds best = {INFINITY, 0};
    for (size_t row = 0; row < list->count; row++) {
      Held branch = *held;
      Bounds b = bounds_of(g, text_of(g, part->reg, row, part->column), &branch);
      best.least_bits = MIN(best.least_bits, b.least_bits);
      best.longest = MAX(best.longest, b.longest);
      for (size_t r = 0; r < REGISTERS; r++) {
        after.surely[r] = row ? after.surely[r] && branch.surely[r] : branch.surely[r];
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
  held.surely[0] = held.maybe[0] = true;
  return bounds_of(g, text_of(g, 0, 0, 0), &held);
}

size_t stories_longest(void) { return story_bounds().longest; }
double stories_least_bits(void) { return story_bounds().least_bits; }
