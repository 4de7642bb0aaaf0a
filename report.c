// report.c: owns report.html: a self-contained page (no script, no network) made from run folders alone. See report.h.
//
// It reads what any other program could read: log.jsonl (the last record of a step counts) and config.txt. Curves are SVG.
#include "report.h"
#include "json.h"     // json_parse
#include <errno.h>    // errno
#include <math.h>     // isfinite, floor
#include <stdlib.h>   // free
#include <string.h>   // strcmp

typedef struct { double step, value; } Point;
typedef struct { Point *points; size_t count, capacity; } Series;
typedef struct { double step; Buffer text; } Sample;

enum { LOSS, VALIDATION, BITS, LR, NORM, RATE, SERIES };
static const char *const series_names[SERIES] = {"training loss", "validation loss", "bits per byte", "learning rate", "gradient norm", "tokens per second"};

typedef struct {
  const char *dir;
  Series series[SERIES];
  Sample *samples;
  size_t sample_count;
  Buffer notes;               // warnings, saves and other events, as HTML list items
  Buffer settings;            // config.txt
  double milliseconds, tokens;  // summed over steps
  double last_step, steps;
  Buffer stories;             // result of the embedded stories, HTML
  Buffer memory;              // what the run takes, rows of an HTML table
} RunLog;

// ---- reading a run ----

// A resumed run writes some steps again: what is in the series from that step on was undone.
static void add_point(Series *s, double step, double value) {
  if (!isfinite(step) || !isfinite(value)) return;
  while (s->count && s->points[s->count - 1].step >= step) s->count--;
  if (s->count == s->capacity) { s->capacity = MAX((size_t)256, 2 * s->capacity); s->points = xrealloc(s->points, s->capacity, sizeof *s->points); }
  s->points[s->count++] = (Point){step, value};
}

static void append_escaped(Buffer *out, const char *s, size_t n) {
  for (size_t i = 0; i < n; i++) {
    if (s[i] == '<') buffer_append(out, "&lt;", 4);
    else if (s[i] == '&') buffer_append(out, "&amp;", 5);
    else if (s[i] == '"') buffer_append(out, "&quot;", 6);
    else if (s[i] == 0) buffer_append(out, "&#xfffd;", 8);       // no character of a page
    else buffer_append(out, s + i, 1);
  }
}

static void read_step(RunLog *r, const Json *j, double step) {
  add_point(&r->series[LOSS], step, json_number(j, "loss", NAN));
  add_point(&r->series[LR], step, json_number(j, "lr", NAN));
  add_point(&r->series[NORM], step, json_number(j, "grad_norm", NAN));
  add_point(&r->series[RATE], step, json_number(j, "tokens_per_s", NAN));
  r->milliseconds += json_number(j, "ms", 0);
  r->tokens = json_number(j, "tokens", r->tokens);
  r->last_step = step;
}

static void read_sample(RunLog *r, const Json *j, double step) {
  const Json *text = json_get(j, "text");
  if (!text || text->type != JSON_STRING) return;
  while (r->sample_count && r->samples[r->sample_count - 1].step >= step) buffer_free(&r->samples[--r->sample_count].text);   // as add_point has it
  r->samples = xrealloc(r->samples, r->sample_count + 1, sizeof *r->samples);
  r->samples[r->sample_count] = (Sample){.step = step};
  buffer_append(&r->samples[r->sample_count++].text, text->string, text->length);
}

static void read_stories(RunLog *r, const Json *j) {
  r->stories.len = 0;
  buffer_printf(&r->stories, "<table><tr><th></th><th>bits per character</th></tr>"
                "<tr><td>floor (the grammar itself)</td><td>%.4f</td></tr><tr><td>this model</td><td>%.4f &plusmn; %.4f</td></tr><tr><td>word trigram</td><td>%.4f</td></tr></table>"
                "<p>%.0f of %.0f sampled stories are legal by the grammar, %.0f of these are not in the training text.</p>",
                json_number(j, "floor", 0), json_number(j, "model", 0), json_number(j, "standard_error", 0), json_number(j, "trigram", 0),
                json_number(j, "legal", 0), json_number(j, "sampled", 0), json_number(j, "legal_new", 0));
}

static void read_start(RunLog *r, const Json *j) {
  const Json *memory = json_get(j, "memory");
  r->steps = json_number(j, "steps", r->steps);
  if (!memory || memory->type != JSON_OBJECT) return;
  double total = 0;
  r->memory.len = 0;
  for (size_t i = 0; i < memory->length; i++) {
    double mib = memory->items[i]->number / (1 << 20);
    buffer_printf(&r->memory, "<tr><td>");
    append_escaped(&r->memory, memory->keys[i], memory->key_lengths[i]);
    buffer_printf(&r->memory, "</td><td>%.1f</td></tr>", mib);
    total += mib;
  }
  buffer_printf(&r->memory, "<tr><td>in all</td><td>%.1f</td></tr>", total);
}

static void read_line(RunLog *r, const char *line, size_t n) {
  char error[200];
  Json *j = json_parse(line, n, error, sizeof error);
  if (!j) return;      // the last line of a run that is being written may be cut
  const char *kind = json_string(j, "kind", "");
  double step = json_number(j, "step", 0);
  if (!strcmp(kind, "step")) read_step(r, j, step);
  else if (!strcmp(kind, "eval")) { add_point(&r->series[VALIDATION], step, json_number(j, "val_loss", NAN)); add_point(&r->series[BITS], step, json_number(j, "bits_per_byte", NAN)); }
  else if (!strcmp(kind, "sample")) read_sample(r, j, step);
  else if (!strcmp(kind, "stories")) read_stories(r, j);
  else if (!strcmp(kind, "start") || !strcmp(kind, "resume")) read_start(r, j);
  if (!strcmp(kind, "warn") || !strcmp(kind, "resume") || !strcmp(kind, "end")) {
    buffer_printf(&r->notes, "<li>step %.0f: %s ", step, kind);
    append_escaped(&r->notes, json_string(j, "where", json_string(j, "reason", json_string(j, "what", ""))), strlen(json_string(j, "where", json_string(j, "reason", json_string(j, "what", "")))));
    buffer_printf(&r->notes, "</li>");
  }
  json_free(j);
}

// Calls `each` for every line of the file, without its end; false, with errno: it cannot be read.
static bool read_lines(RunLog *r, const char *path, void (*each)(RunLog *, const char *, size_t)) {
  FILE *f = fopen(path, "r");
  if (!f) return false;
  char *line = NULL;
  size_t room = 0;
  for (ssize_t n; (n = getline(&line, &room, f)) > 0;) each(r, line, (size_t)n - (line[n - 1] == '\n'));
  bool ok = !ferror(f);
  int why = errno;
  free(line);
  fclose(f);
  errno = why;
  return ok;
}

static void read_setting(RunLog *r, const char *line, size_t n) {
  buffer_append(&r->settings, line, n);
  buffer_append(&r->settings, "\n", 1);
}

// False, with errno: there is no log that can be read.
static bool read_run(RunLog *r, const char *dir) {
  *r = (RunLog){.dir = dir};
  char *log = format("%s/log.jsonl", dir), *config = format("%s/config.txt", dir);
  bool ok = read_lines(r, log, read_line);
  if (ok) read_lines(r, config, read_setting);
  free(log);
  free(config);
  return ok;
}

static void free_run(RunLog *r) {
  for (int i = 0; i < SERIES; i++) free(r->series[i].points);
  for (size_t i = 0; i < r->sample_count; i++) buffer_free(&r->samples[i].text);
  free(r->samples);
  buffer_free(&r->settings);
  buffer_free(&r->notes);
  buffer_free(&r->stories);
  buffer_free(&r->memory);
}

// ---- drawing ----

enum { WIDTH = 860, HEIGHT = 300, LEFT = 70, RIGHT = 20, TOP = 30, BOTTOM = 40 };
static const char *const colours[] = {"#2563eb", "#dc2626", "#16a34a", "#9333ea", "#ea580c", "#0891b2", "#4d7c0f", "#be185d"};

typedef struct { const Series *s; const char *name; const char *colour; bool dots; } Curve;

static double nice_step(double range) {
  double raw = range / 5, power = pow(10, floor(log10(raw))), m = raw / power;
  return power * (m < 1.5 ? 1 : m < 3.5 ? 2 : m < 7.5 ? 5 : 10);
}

typedef struct { double x0, x1, y0, y1; } Frame;

static double px(const Frame *f, double x) { return LEFT + (x - f->x0) / (f->x1 - f->x0) * (WIDTH - LEFT - RIGHT); }
static double py(const Frame *f, double y) { return HEIGHT - BOTTOM - (y - f->y0) / (f->y1 - f->y0) * (HEIGHT - TOP - BOTTOM); }

static bool find_frame(const Curve *curves, size_t count, Frame *f) {
  *f = (Frame){INFINITY, -INFINITY, INFINITY, -INFINITY};
  for (size_t c = 0; c < count; c++)
    for (size_t i = 0; i < curves[c].s->count; i++) {
      Point p = curves[c].s->points[i];
      f->x0 = fmin(f->x0, p.step); f->x1 = fmax(f->x1, p.step);
      f->y0 = fmin(f->y0, p.value); f->y1 = fmax(f->y1, p.value);
    }
  if (!(f->x0 <= f->x1)) return false;
  if (f->x1 == f->x0) f->x1 = f->x0 + 1;
  double margin = 0.05 * (f->y1 - f->y0);
  if (!(margin > 0)) margin = fmax(fabs(f->y0) * 0.05, 1e-12);
  f->y0 -= margin;
  f->y1 += margin;
  return true;
}

static void draw_axes(Buffer *out, const Frame *f) {
  double dx = nice_step(f->x1 - f->x0), dy = nice_step(f->y1 - f->y0);
  for (double x = ceil(f->x0 / dx) * dx; x <= f->x1; x += dx)
    buffer_printf(out, "<line class='grid' x1='%.1f' y1='%d' x2='%.1f' y2='%d'/><text x='%.1f' y='%d' text-anchor='middle'>%.6g</text>", px(f, x), TOP, px(f, x), HEIGHT - BOTTOM, px(f, x), HEIGHT - BOTTOM + 18, x);
  for (double y = ceil(f->y0 / dy) * dy; y <= f->y1; y += dy)
    buffer_printf(out, "<line class='grid' x1='%d' y1='%.1f' x2='%d' y2='%.1f'/><text x='%d' y='%.1f' text-anchor='end'>%.4g</text>", LEFT, py(f, y), WIDTH - RIGHT, py(f, y), LEFT - 8, py(f, y) + 4, fabs(y) < dy * 1e-9 ? 0 : y);
}

// At most ~800 points are drawn: each is the mean of its stretch, so that the page stays small however long the run was.
static void draw_curve(Buffer *out, const Frame *f, const Curve *c) {
  size_t stretch = MAX((size_t)1, c->s->count / 800);
  buffer_printf(out, "<polyline fill='none' stroke='%s' stroke-width='1.6' points='", c->colour);
  for (size_t i = 0; i < c->s->count; i += stretch) {
    size_t n = MIN(stretch, c->s->count - i);
    double x = 0, y = 0;
    for (size_t j = i; j < i + n; j++) { x += c->s->points[j].step / (double)n; y += c->s->points[j].value / (double)n; }
    buffer_printf(out, "%.1f,%.1f ", px(f, x), py(f, y));
  }
  buffer_printf(out, "'/>");
  for (size_t i = 0; c->dots && i < c->s->count; i++)
    buffer_printf(out, "<circle cx='%.1f' cy='%.1f' r='3' fill='%s'><title>step %.0f: %.5g</title></circle>", px(f, c->s->points[i].step), py(f, c->s->points[i].value), c->colour, c->s->points[i].step, c->s->points[i].value);
}

static void draw_chart(Buffer *out, const char *title, const Curve *curves, size_t count) {
  Frame f;
  if (!find_frame(curves, count, &f)) return;
  buffer_printf(out, "<svg viewBox='0 0 %d %d' role='img' aria-label='%s'><text class='title' x='%d' y='18'>%s</text>", WIDTH, HEIGHT, title, LEFT, title);
  draw_axes(out, &f);
  for (size_t c = 0; c < count; c++) draw_curve(out, &f, &curves[c]);
  for (size_t c = 0; c < count && c < 8; c++) {
    buffer_printf(out, "<text x='%d' y='%zu' text-anchor='end' style='fill:%s'>", WIDTH - RIGHT - 4, TOP + 14 + 15 * c, curves[c].colour);
    append_escaped(out, curves[c].name, strlen(curves[c].name));
    buffer_printf(out, "</text>");
  }
  buffer_printf(out, "<text x='%d' y='%d' text-anchor='end'>step</text></svg>\n", WIDTH - RIGHT, HEIGHT - 6);
}

static void draw_charts(Buffer *out, const RunLog *runs, size_t count) {
  Curve *curves = xmalloc(2 * count, sizeof *curves);
  size_t n = 0;
  for (size_t r = 0; r < count; r++) {
    const char *colour = colours[r % ARRAY_LEN(colours)];
    curves[n++] = (Curve){&runs[r].series[LOSS], count > 1 ? runs[r].dir : series_names[LOSS], count > 1 ? colour : colours[0], false};
    if (count == 1) curves[n++] = (Curve){&runs[r].series[VALIDATION], series_names[VALIDATION], colours[1], true};
  }
  draw_chart(out, count > 1 ? "training loss, nats a token" : "loss, nats a token", curves, n);
  for (int s = count > 1 ? VALIDATION : BITS; s < SERIES; s++) {
    for (size_t r = 0; r < count; r++)
      curves[r] = (Curve){&runs[r].series[s], count > 1 ? runs[r].dir : series_names[s], colours[r % ARRAY_LEN(colours)], s == VALIDATION || s == BITS};
    draw_chart(out, series_names[s], curves, count);
  }
  free(curves);
}

// ---- the page ----

static const char page_head[] =
  "<!doctype html><html lang='en'><head><meta charset='utf-8'><meta name='viewport' content='width=device-width'><title>gpt report</title><style>"
  ":root{color-scheme:light dark}body{font:15px/1.5 system-ui,sans-serif;max-width:900px;margin:2em auto;padding:0 1em}"
  "svg{width:100%;height:auto;margin:.6em 0}svg text{font:12px system-ui,sans-serif;fill:currentColor}svg .title{font-weight:600;font-size:14px}"
  ".grid{stroke:currentColor;stroke-opacity:.15}table{border-collapse:collapse}td,th{padding:.2em .8em;border-bottom:1px solid #8884;text-align:left}"
  "pre{white-space:pre-wrap;background:#8881;padding:.8em;border-radius:6px}</style></head><body>\n";

static double last_value(const Series *s) { return s->count ? s->points[s->count - 1].value : NAN; }

static void append_number(Buffer *out, double x, const char *fmt) {
  buffer_printf(out, "<td>");
  if (isfinite(x)) {
    char text[64];
    snprintf(text, sizeof text, "%.*f", !strcmp(fmt, "4") ? 4 : 0, x);
    buffer_printf(out, "%s", text);
  } else buffer_printf(out, "-");
  buffer_printf(out, "</td>");
}

static void append_summary(Buffer *out, const RunLog *runs, size_t count) {
  buffer_printf(out, "<table><tr><th>run</th><th>step</th><th>training loss</th><th>validation loss</th><th>bits per byte</th><th>tokens</th><th>tokens/s</th><th>minutes</th></tr>");
  for (size_t r = 0; r < count; r++) {
    const RunLog *l = &runs[r];
    buffer_printf(out, "<tr><td style='color:%s'>", colours[r % ARRAY_LEN(colours)]);
    append_escaped(out, l->dir, strlen(l->dir));
    buffer_printf(out, "</td><td>%.0f of %.0f</td>", l->last_step, l->steps);
    append_number(out, last_value(&l->series[LOSS]), "4");
    append_number(out, last_value(&l->series[VALIDATION]), "4");
    append_number(out, last_value(&l->series[BITS]), "4");
    append_number(out, l->tokens, "0");
    append_number(out, l->milliseconds > 0 && l->series[RATE].count ? last_value(&l->series[RATE]) : NAN, "0");
    buffer_printf(out, "<td>%.1f</td></tr>", l->milliseconds / 60000);
  }
  buffer_printf(out, "</table>\n");
}

static void append_run_details(Buffer *out, const RunLog *l) {
  if (l->stories.len) buffer_printf(out, "<h2>How close to the text's own entropy</h2>%s\n", l->stories.data);
  if (l->sample_count) buffer_printf(out, "<h2>Samples over time</h2>\n");
  for (size_t i = 0; i < l->sample_count; i++) {
    buffer_printf(out, "<p>step %.0f</p><pre>", l->samples[i].step);
    append_escaped(out, l->samples[i].text.data ? l->samples[i].text.data : "", l->samples[i].text.len);
    buffer_printf(out, "</pre>\n");
  }
  if (l->notes.len) buffer_printf(out, "<h2>Events</h2><ul>%s</ul>\n", l->notes.data);
  if (l->memory.len) buffer_printf(out, "<h2>Memory</h2><table><tr><th>kind</th><th>MiB</th></tr>%s</table>\n", l->memory.data);
  buffer_printf(out, "<h2>Settings</h2><pre>");
  append_escaped(out, l->settings.data ? l->settings.data : "", l->settings.len);
  buffer_printf(out, "</pre>\n");
}

// NULL, or the folder whose log cannot be read, with errno.
static const char *make_page(Buffer *out, const char *const *dirs, size_t count) {
  RunLog *runs = xmalloc(count, sizeof *runs);
  for (size_t i = 0; i < count; i++) {
    if (read_run(&runs[i], dirs[i])) continue;
    int why = errno;
    for (size_t k = 0; k <= i; k++) free_run(&runs[k]);
    free(runs);
    errno = why;
    return dirs[i];
  }
  buffer_append(out, page_head, sizeof page_head - 1);
  buffer_printf(out, "<h1>gpt: ");
  for (size_t i = 0; i < count; i++) { buffer_printf(out, "%s", i ? ", " : ""); append_escaped(out, dirs[i], strlen(dirs[i])); }
  buffer_printf(out, "</h1>\n");
  append_summary(out, runs, count);
  draw_charts(out, runs, count);
  for (size_t i = 0; i < count; i++) {
    if (count > 1) { buffer_printf(out, "<h1>"); append_escaped(out, dirs[i], strlen(dirs[i])); buffer_printf(out, "</h1>\n"); }
    append_run_details(out, &runs[i]);
    free_run(&runs[i]);
  }
  buffer_printf(out, "</body></html>\n");
  free(runs);
  return NULL;
}

void report_write_run(const char *run_dir) {
  Buffer page = {0};
  char *path = format("%s/report.html", run_dir);
  if (make_page(&page, &run_dir, 1)) warn("%s: no report: log.jsonl cannot be read: %s", run_dir, strerror(errno));
  else if (!try_replace_file(path, page.data, page.len)) warn("%s: cannot be written: %s", path, strerror(errno));
  free(path);
  buffer_free(&page);
}

int report_command(const Options *o) {
  if (o->arg_count == 0) fail(EXIT_REQUEST, "gpt report needs at least one RUN folder");
  Buffer page = {0};
  const char *none = make_page(&page, o->args, o->arg_count);
  if (none) fail(EXIT_REQUEST, "%s: is no run folder (log.jsonl: %s)", none, strerror(errno));
  const char *path = o->file_out ? o->file_out : o->arg_count == 1 ? NULL : "report.html";
  char *inside = path ? NULL : format("%s/report.html", o->args[0]);
  if (!o->file_out && path && file_exists(path)) fail(EXIT_REQUEST, "%s is there already; name another file with --out", path);
  replace_file(path ? path : inside, page.data, page.len);
  printf("%s: %zu run%s\n", path ? path : inside, o->arg_count, o->arg_count > 1 ? "s" : "");
  free(inside);
  buffer_free(&page);
  return 0;
}
