// test_evaluate.c: owns the tests of evaluate.c's loop over a split: which windows are scored, and when it counts as stopped.
// What gpt eval says: test_cli_train.sh
#include "../evaluate.h"    // what is tested
#include "test.h"
#include "tiny_model.h"     // tiny

enum { T = 4, WINDOWS = 5, TOKENS = 19 };    // 18 targets: the last window has two

static Gpt *model(Device *d, int64_t B) {
  GptConfig c = tiny(FAMILY_GPT2);
  Gpt *m = gpt_create(d, &(GptOptions){.config = c, .purpose = PURPOSE_EVALUATE, .B = B, .T = T});
  gpt_init(m, 3);
  gpt_refresh(m);
  return m;
}

static Dataloader *split(void) {
  int32_t ids[TOKENS];
  for (int i = 0; i < TOKENS; i++) ids[i] = i * i % 29;
  Dataloader *l = dataloader_open_tokens(ids, TOKENS, 29, -1);
  dataloader_arrange(l, T, ORDER_STREAM, 0);
  return l;
}

static int asked, stop_at;
static int stop(void) { return ++asked == stop_at ? 15 : 0; }

// Asked after each batch that another follows; stopped only where windows are missing.
static void stopped_before_the_end(void) {
  Device *d = reference_device();
  Dataloader *l = split();
  double bytes[29], nats = 0;
  for (int i = 0; i < 29; i++) bytes[i] = 2;
  for (int64_t B = 1; B <= WINDOWS + 1; B++) {
    Gpt *m = model(d, B);
    for (int64_t most = 0; most <= TOKENS + T; most++) {
      const int64_t windows = most == 0 || most >= WINDOWS * T ? WINDOWS : MAX((int64_t)1, most / T), batches = (windows + B - 1) / B;
      for (stop_at = 0; stop_at <= batches; stop_at++) {
        asked = 0;
        Score s = evaluate_loader(m, l, bytes, most, stop);
        const bool cut = stop_at > 0 && stop_at < batches;
        const int64_t scored = cut ? stop_at * B : windows;
        CHECK_MSG(s.stopped == cut, "B %lld, at most %lld tokens, stop after batch %d of %lld", (long long)B, (long long)most, stop_at, (long long)batches);
        CHECK_EQ(s.tokens, MIN(scored * T, (int64_t)TOKENS - 1));
        CHECK_EQ(asked, cut ? stop_at : batches - 1);
        CHECK(s.bytes == 2 * (double)s.tokens);
        if (scored == WINDOWS && nats == 0) nats = s.nats;
        if (scored == WINDOWS) CHECK(s.nats == nats && nats > 18);      // whatever B is: added in the order of the tokens
      }
    }
    CHECK(!evaluate_loader(m, l, NULL, 0, NULL).stopped);
    gpt_destroy(m);
  }
  dataloader_close(l);
  d->destroy(d);
}

int main(int argc, char **argv) {
  TEST_BEGIN(argc, argv);
  RUN(stopped_before_the_end);
  return TEST_END();
}
