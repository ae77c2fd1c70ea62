// page.c -- the parts that all pages share, and the file itself.
//
// Text from a log ends up in the page in one way only: as a JSON string inside a script element of
// type application/json, in which every '<' is written \u003c; page.js hands it to the browser as
// text, never as markup. The embedded policy forbids the page every request.
#include "results/graph/page.h"

#include <math.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "results/graph/source.h"

// Made by CMake from page.html, page.css and page.js; NUL-terminated.
extern const char page_html[], page_css[], page_js[];

enum { DETAIL_BYTES = 1 << 16 };
static const double NAME_PIXELS = 7.3, SECOND_PIXELS = 5.9, MARGIN_PIXELS = 18, WIDTH_MIN = 56,
                    WIDTH_MAX = 250;

Json *page_node(const char *name, const char *second, const char *class_name)
{
    Json *node = json_set(json_object(), "n", json_text(name));
    double name_width = NAME_PIXELS * (double)strlen(name);
    double second_width = SECOND_PIXELS * (double)strlen(second);
    double width = fmax(name_width, second_width) + MARGIN_PIXELS;
    json_set(node, "s", json_text(second));
    json_set(node, "c", json_text(class_name));
    json_set(node, "d", json_array());
    json_set(node, "i", json_array());
    json_set(node, "k", json_array());
    json_set(node, "r", json_array());
    return json_set(node, "w", json_real(round(fmin(fmax(width, WIDTH_MIN), WIDTH_MAX))));
}

void page_detail(Json *node, const char *key, const char *format, ...)
{
    char fixed[512], *text = fixed;
    va_list arguments;
    va_start(arguments, format);
    int length = vsnprintf(fixed, sizeof(fixed), format, arguments);
    va_end(arguments);
    if (length <= 0)
        return;
    if ((size_t)length >= sizeof(fixed)) {
        size_t bytes = (size_t)length < DETAIL_BYTES ? (size_t)length + 1 : DETAIL_BYTES;
        text = malloc(bytes);
        CHECK(text, EXIT_CODE_HARDWARE, "free memory", "no memory for %zu bytes of a page", bytes);
        va_start(arguments, format);
        vsnprintf(text, bytes, format, arguments);
        va_end(arguments);
    }
    Json *row = json_append(json_append(json_array(), json_text(key)), json_text(text));
    json_append((Json *)(uintptr_t)json_find(node, "d"), row);
    if (text != fixed)
        free(text);
}

Json *page_pair(int64_t tab, int64_t node)
{
    return json_append(json_append(json_array(), json_integer(tab)), json_integer(node));
}

Json *page_tab(const PageTab *tab)
{
    int64_t count = (int64_t)json_count(tab->nodes);
    double *width = calloc((size_t)count + 1, sizeof(*width));
    CHECK(width, EXIT_CODE_HARDWARE, "free memory", "no memory for %lld nodes", (long long)count);
    for (int64_t n = 0; n < count; n++)
        width[n] = json_real_of(json_find(json_at(tab->nodes, (uint64_t)n), "w"));
    Layout layout = layout_make(&(LayoutGraph){
        .nodes = count, .edges = tab->edge_count, .width = width, .edge = tab->edges});
    for (int64_t n = 0; n < count; n++) {
        Json *node = (Json *)(uintptr_t)json_at(tab->nodes, (uint64_t)n);
        json_set(node, "x", json_integer((int64_t)round(layout.x[n])));
        json_set(node, "y", json_integer((int64_t)round(layout.y[n])));
    }
    for (int64_t i = 0; i < tab->edge_count; i++) {
        const Json *node = json_at(tab->nodes, (uint64_t)tab->edges[i].to);
        json_append((Json *)(uintptr_t)json_find(node, "i"), json_integer(tab->edges[i].from));
    }
    Json *made = json_set(json_object(), "title", json_text(tab->title));
    json_set(made, "kind", json_text(tab->kind));
    json_set(made, "group", json_text(tab->group));
    json_set(made, "note", json_text(layout.method));
    json_set(made, "width", json_integer((int64_t)ceil(layout.width)));
    json_set(made, "height", json_integer((int64_t)ceil(layout.height)));
    layout_destroy(&layout);
    free(width);
    return json_set(made, "nodes", tab->nodes);
}

// Inside a script element only '<' can end it or begin something else.
static bool write_escaped(Sink *sink, const char *json, Error *error)
{
    for (;;) {
        size_t plain = strcspn(json, "<");
        if (!sink_write(sink, json, plain, error))
            return false;
        if (json[plain] == '\0')
            return true;
        if (!sink_write(sink, "\\u003c", strlen("\\u003c"), error))
            return false;
        json += plain + 1;
    }
}

// page.html with its three places filled in.
static bool write_all(Sink *sink, const char *json, Error *error)
{
    static const struct {
        const char *place, *text;
    } parts[] = {{"{{css}}", page_css}, {"{{data}}", NULL}, {"{{js}}", page_js}};
    const char *at = page_html;
    for (size_t i = 0; i < COUNT_OF(parts); i++) {
        const char *place = strstr(at, parts[i].place);
        CHECK_RULE(place != NULL);
        bool good = sink_write(sink, at, (size_t)(place - at), error);
        if (parts[i].text)
            good = good && sink_write(sink, parts[i].text, strlen(parts[i].text), error);
        else
            good = good && write_escaped(sink, json, error);
        if (!good)
            return false;
        at = place + strlen(parts[i].place);
    }
    return sink_write(sink, at, strlen(at), error);
}

bool page_write(const Json *document, const char *path, bool force, Error *error)
{
    Sink *sink = sink_open(path, force, error);
    if (!sink)
        return false;
    char *json = json_print(document, false);
    bool good = write_all(sink, json, error);
    free(json);
    if (good)
        return sink_commit(sink, error);
    sink_abandon(sink);
    return false;
}
