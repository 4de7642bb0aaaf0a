// test_stories.c: owns the tests of the embedded stories (stories.c) and of the word trigram they are measured against (trigram.c).
#include "test.h"
#include "../stories.h"  // the grammar
#include "../trigram.h"  // the baseline

enum { SEED = 20, LONGEST_ALLOWED = 900, LEAST_BITS = 100 };

// The first thousand stories of seed 20, each followed by a newline. A new row in a table changes it; nothing else may.
static const char FIRST_THOUSAND[] = "3329a41b2bb7194a89fcd73399e166f9e52dc3294a8402ccd6529f057659a21d";

static void same_text_everywhere(void) {
  Buffer b = {0};
  for (uint64_t i = 0; i < 1000; i++) {
    stories_generate(&b, SEED, i);
    buffer_append(&b, "\n", 1);
  }
  char hex[65];
  sha256_of(b.data, b.len, hex);
  CHECK_STR(hex, FIRST_THOUSAND);
  buffer_free(&b);
}

static void a_story_is_a_pure_function(void) {
  Buffer a = {0}, b = {0};
  for (uint64_t i = 0; i < 50; i++) {  // forward, and backward after other streams
    a.len = b.len = 0;
    double p = stories_generate(&a, SEED, i);
    stories_generate(&b, SEED + 1, 1000 - i);
    CHECK(strcmp(a.data, b.data) != 0);
    b.len = 0;
    double q = stories_generate(&b, SEED, i);
    CHECK_STR(a.data, b.data);
    CHECK(p == q);
  }
  size_t before = a.len;
  stories_generate(&a, SEED, 1ull << 40);  // appends; indices past 32 bits are stories of their own
  CHECK(a.len > before && !memcmp(a.data, b.data, before));
  CHECK(a.data[a.len - 1] != '\n' && a.data[a.len - 1] != ' ');
  b.len = 0;
  stories_generate(&b, SEED, 0);
  CHECK(strcmp(a.data + before, b.data) != 0);
  buffer_free(&a);
  buffer_free(&b);
}

static void every_story_has_the_bits(void) {
  CHECK(stories_least_bits() >= LEAST_BITS);
  CHECK(stories_longest() <= LONGEST_ALLOWED);
  size_t longest = 0, bytes = 0;
  double least = 1e9;
  Buffer b = {0};
  for (uint64_t i = 0; i < 20000; i++) {
    b.len = 0;
    double bits = -stories_generate(&b, SEED, i);
    least = MIN(least, bits);
    longest = MAX(longest, b.len);
    bytes += b.len;
  }
  CHECK_MSG(least >= stories_least_bits() - 1e-9, "a story of %.3f bits, under the bound %.3f", least, stories_least_bits());
  CHECK_MSG(longest <= stories_longest(), "a story of %zu bytes, over the bound %zu", longest, stories_longest());
  CHECK_MSG(bytes / 20000 >= 350 && bytes / 20000 <= 700, "%zu bytes on average", bytes / 20000);
  buffer_free(&b);
}

// The forward pass adds up all derivations: there is one, of the probability the generator drew with.
static void probability_is_the_generators(void) {
  enum { count = 100000 };
  double worst = 0;
  int64_t ambiguous = 0, off = 0;
#pragma omp parallel for schedule(dynamic, 64) reduction(+ : ambiguous, off) reduction(max : worst)
  for (int64_t i = 0; i < count; i++) {
    Buffer b = {0};
    double derivations, p = stories_generate(&b, SEED + 2, (uint64_t)i), q = stories_logprob(b.data, b.len, NULL, &derivations);
    ambiguous += derivations != 1;
    off += !(fabs(p - q) <= 1e-9);
    if (fabs(p - q) > worst) worst = fabs(p - q);
    buffer_free(&b);
  }
  CHECK_EQ(ambiguous, 0);
  CHECK_MSG(off == 0, "%lld of %d stories, the worst by %g bits", (long long)off, count, worst);
}

// P(next | prefix) of each character of a story: adds up to the story's; no model can be better informed.
static void next_adds_up(void) {
  Buffer b = {0};
  for (uint64_t i = 0; i < 200; i++) {
    b.len = 0;
    stories_generate(&b, SEED, i);
    double *next = xmalloc(b.len + 1, sizeof *next), sum = 0;
    double p = stories_logprob(b.data, b.len, next, NULL);
    for (size_t k = 0; k <= b.len; k++) {
      CHECK_MSG(next[k] <= 1e-12, "log2 P = %g of character %zu", next[k], k);
      sum += next[k];
    }
    CHECK_NEAR(sum, p, 1e-9, "story %d", (int)i);  // both are sums of some 600 doubles near 1
    CHECK_NEAR(next[b.len], 0, 1e-12, "the end of story %d is certain", (int)i);
    free(next);
  }
  buffer_free(&b);
}

// At a prefix of a story the probabilities of all 256 bytes and of the end add to one, and are those of next[].
static void next_is_a_distribution(void) {
  Buffer b = {0};
  for (uint64_t i = 0; i < 12; i++) {
    b.len = 0;
    stories_generate(&b, SEED, i);
    double *of_story = xmalloc(b.len + 1, sizeof *of_story), *next = xmalloc(b.len + 2, sizeof *next);
    stories_logprob(b.data, b.len, of_story, NULL);
    char *text = xstrdup(b.data);
    for (size_t cut = i % 2; cut <= b.len; cut += 1 + (cut * 7 + i) % 37) {
      stories_logprob(text, cut, next, NULL);
      double sum = exp2(next[cut]);
      for (int c = 0; c < 256; c++) {
        char keep = text[cut];
        text[cut] = (char)c;
        stories_logprob(text, cut + 1, next, NULL);
        sum += exp2(next[cut]);
        if (cut < b.len && (char)c == b.data[cut]) CHECK_NEAR(next[cut], of_story[cut], 1e-12, "cut %zu", cut);
        text[cut] = keep;
      }
      CHECK_NEAR(sum, 1, 1e-12, "story %d cut at %zu", (int)i, cut);
    }
    free(of_story);
    free(next);
    free(text);
  }
  buffer_free(&b);
}

// True if the text with `from` (its last one if last) replaced by `to` is a story; the text must hold it.
static bool legal_with(const char *story, const char *from, const char *to, bool last) {
  const char *at = strstr(story, from);
  CHECK_MSG(at != NULL, "\"%s\" is not in: %s", from, story);
  if (!at) return true;
  for (const char *next = at; last && (next = strstr(next + 1, from));) at = next;
  char *text = format("%.*s%s%s", (int)(at - story), story, to, at + strlen(from));
  bool legal = stories_legal(text, strlen(text));
  free(text);
  return legal;
}

// A name, a pronoun, a thing or an effect that disagrees with what the story said before makes it no story.
static void disagreement_is_illegal(void) {
  static const struct { const char *from, *to; bool follows; } edits[] = {   // follows: its cause stands elsewhere; else it is said twice
    {"Sam", "Max", false}, {"Mia", "Zoe", false}, {"Dan", "Leo", false}, {"Rosa", "Tess", false}, {" his ", " her ", true}, {" him ", " her ", true},
    {"kite", "drum", false}, {"lantern", "bell", false}, {"owl", "frog", false}, {"cow", "pig", false}, {"fox", "goat", false},
    {"stalls", "roses", true}, {"trees", "rocks", true}, {"The rain stopped", "The wind fell", true}, {"mittens", "hat", true}, {"mooed", "barked", true}};
  int tried[ARRAY_LEN(edits)] = {0};
  Buffer b = {0};
  for (uint64_t i = 0; i < 400; i++) {
    b.len = 0;
    stories_generate(&b, SEED, i);
    for (size_t e = 0; e < ARRAY_LEN(edits); e++) {
      const char *first = strstr(b.data, edits[e].from);
      // changed in one of two places only; a story that holds the other word too may be one that allows it
      if (!first || (!edits[e].follows && !strstr(first + 1, edits[e].from)) || strstr(b.data, edits[e].to)) continue;
      tried[e]++;
      CHECK_MSG(!legal_with(b.data, edits[e].from, edits[e].to, true), "%s to %s is legal in: %s", edits[e].from, edits[e].to, b.data);
    }
  }
  for (size_t e = 0; e < ARRAY_LEN(edits); e++) CHECK_MSG(tried[e] > 0, "no story of 400 has \"%s\" to change", edits[e].from);
  buffer_free(&b);
}

static void illegal_texts_have_no_probability(void) {
  Buffer b = {0};
  stories_generate(&b, SEED, 3);
  double derivations = 9, *next = xmalloc(b.len + 1, sizeof *next);
  CHECK(!stories_legal("", 0));
  CHECK(!stories_legal(b.data, b.len - 1));  // a prefix
  CHECK(stories_logprob(b.data, b.len - 1, next, &derivations) == -INFINITY);
  CHECK(derivations == 0 && next[b.len - 1] == -INFINITY && next[b.len - 2] <= 0 && next[b.len - 2] > -INFINITY);
  for (size_t i = 0; i < b.len; i++) {  // each byte changed, no matter which, to one that no story has there
    char keep = b.data[i];
    b.data[i] = '~';
    CHECK(stories_logprob(b.data, b.len, next, &derivations) == -INFINITY && derivations == 0);
    CHECK(next[i] == -INFINITY && next[b.len] == -INFINITY && (i == 0 || next[i - 1] > -INFINITY));
    b.data[i] = keep;
  }
  buffer_append(&b, "\0", 1);
  CHECK(!stories_legal(b.data, b.len));
  b.data[b.len - 1] = ' ';
  CHECK(!stories_legal(b.data, b.len));
  CHECK(stories_legal(b.data, b.len - 1));
  free(next);
  buffer_free(&b);
}

// The baseline is a word trigram fitted on as many stories as the demo trains on. It must be honest (it beats a unigram by
// far, any text has a probability) and still lie at least 40 % above the floor, or the stories would be too easy.
static void trigram_is_an_honest_baseline(void) {
  enum { FITTED = 4000, SCORED = 300 };
  Buffer all = {0};
  size_t *ends = xmalloc(FITTED, sizeof *ends), *lengths = xmalloc(FITTED, sizeof *lengths);
  const char **texts = xmalloc(FITTED, sizeof *texts);
  for (uint64_t i = 0; i < FITTED; i++) { stories_generate(&all, SEED, i); ends[i] = all.len; }
  for (size_t i = 0; i < FITTED; i++) { texts[i] = all.data + (i ? ends[i - 1] : 0); lengths[i] = ends[i] - (i ? ends[i - 1] : 0); }
  Trigram *t = trigram_fit(texts, lengths, FITTED);
  double floor_bits = 0, bits = 0, characters = 0;
  for (uint64_t i = 0; i < SCORED; i++) {
    Buffer b = {0};
    floor_bits -= stories_generate(&b, SEED + 1, i);
    bits += trigram_bits(t, b.data, b.len);
    characters += (double)b.len;
    buffer_free(&b);
  }
  CHECK_MSG(bits >= 1.4 * floor_bits, "%.4f against a floor of %.4f bits a character", bits / characters, floor_bits / characters);
  CHECK_MSG(bits < 0.8 * characters, "%.4f bits a character is no trigram of these stories", bits / characters);
  CHECK(isfinite(trigram_bits(t, "Qwx!\n", 5)) && trigram_bits(t, "Qwx!\n", 5) > 30);
  CHECK(trigram_bits(t, "", 0) > 0);
  trigram_free(t);
  free(ends);
  free(lengths);
  free(texts);
  buffer_free(&all);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(same_text_everywhere);
  RUN(a_story_is_a_pure_function);
  RUN(every_story_has_the_bits);
  RUN(probability_is_the_generators);
  RUN(next_adds_up);
  RUN(next_is_a_distribution);
  RUN(disagreement_is_illegal);
  RUN(illegal_texts_have_no_probability);
  RUN(trigram_is_an_honest_baseline);
  return TEST_END();
}
