// 3_buckets.c: a backward pass, and when its gradients may be summed.
//
// The gradient of a layer is final when the backward pass has left the layer. One all-reduce at the end needs one call; one for each layer (a BUCKET) sends the same bytes in more
// calls, and so is no faster yet: every call has its turns of the ring, each of which waits for the slowest. What buckets are good for is in 4_overlap.c.
// The backward pass stands still for a few milliseconds a layer, as a processor does whose GPU computes.
#define LIBRARY
#include "2_ring.c"

enum { LAYERS = 12 };
static const useconds_t LAYER_MICROSECONDS = 5000;

void compute_layer(void) { usleep(LAYER_MICROSECONDS); }
size_t layer_begin(size_t n, int layer) { return n * (size_t)layer / LAYERS; }

#ifndef LIBRARY_OF_BUCKETS
static void at_the_end(Rank *me, float *x, size_t n) {
  for (int layer = LAYERS - 1; layer >= 0; layer--) compute_layer();
  ring(me, x, n);
}
static void in_buckets(Rank *me, float *x, size_t n) {
  for (int layer = LAYERS - 1; layer >= 0; layer--) {
    compute_layer();
    ring(me, x + layer_begin(n, layer), layer_begin(n, layer + 1) - layer_begin(n, layer));
  }
}

int main(void) { return check_and_time("at the end", at_the_end) || check_and_time("in buckets", in_buckets); }
#endif
