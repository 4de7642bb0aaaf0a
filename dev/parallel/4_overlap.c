// 4_overlap.c: buckets summed while the backward pass goes on.
//
// A second thread takes the buckets in the order in which they become final, and does the communication; the backward pass goes on with the layer below, and waits once, at the end, for what
// is left. Only the last bucket, and what the network could not keep up with, costs time (Li et al. 2020, PyTorch Distributed, describe the same for GPUs). The program's own form
// is CommQueue in comm.c; gpt train --trace says how much was hidden.
#define LIBRARY_OF_BUCKETS
#include "3_buckets.c"
#include <pthread.h>

typedef struct { Rank *me; float *x; size_t n; pthread_mutex_t mutex; pthread_cond_t changed; int done; } Queue;   // layers done..LAYERS-1 are final

static void *communicate(void *context) {
  Queue *q = context;
  for (int layer = LAYERS - 1; layer >= 0; layer--) {
    pthread_mutex_lock(&q->mutex);
    while (q->done > layer) pthread_cond_wait(&q->changed, &q->mutex);
    pthread_mutex_unlock(&q->mutex);
    ring(q->me, q->x + layer_begin(q->n, layer), layer_begin(q->n, layer + 1) - layer_begin(q->n, layer));
  }
  return NULL;
}

static void overlapped(Rank *me, float *x, size_t n) {
  Queue q = {.me = me, .x = x, .n = n, .mutex = PTHREAD_MUTEX_INITIALIZER, .changed = PTHREAD_COND_INITIALIZER, .done = LAYERS};
  pthread_t thread;
  if (pthread_create(&thread, NULL, communicate, &q)) exit(1);
  for (int layer = LAYERS - 1; layer >= 0; layer--) {
    compute_layer();
    pthread_mutex_lock(&q.mutex);
    q.done = layer;
    pthread_cond_signal(&q.changed);
    pthread_mutex_unlock(&q.mutex);
  }
  pthread_join(thread, NULL);
}

int main(void) { return check_and_time("overlapped", overlapped); }
