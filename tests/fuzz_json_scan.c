// Any bytes against the JSON scanner: no byte read past the end, the grammar of jansson, a good
// text cut off wants more, and an event's parts lie within it. Run by program_fuzz.sh.
#include "harness/json.h"
#include "results/graph/trace_reader.h"

#include <stdlib.h>
#include <string.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes);

static void require(bool condition)
{
    if (!condition)
        abort();
}

// What jansson refuses for reasons of its own, and the three words that only we take.
static bool refused_for_more_than_grammar(const char *why, const char *text, size_t bytes)
{
    static const char *const parts[] = {"duplicate", "too big", "overflow", "Unicode",    "u0000",
                                        "NUL byte",  "deeper",  "UTF-8",    "decode byte"};
    for (size_t i = 0; i < COUNT_OF(parts); i++)
        if (strstr(why, parts[i]))
            return true;
    Slice slice = {text, bytes};
    return slice_find(slice, "NaN") < bytes || slice_find(slice, "Infinity") < bytes;
}

static void require_within(Slice part, Slice whole)
{
    require(part.bytes == 0 ||
            (part.at >= whole.at && part.at + part.bytes <= whole.at + whole.bytes));
}

static void scan_as_event(const char *text, size_t bytes)
{
    JsonScan scan = {text, text + bytes, NULL}, plain = scan;
    TraceEvent event;
    JsonOutcome outcome = trace_scan_event(&scan, &event);
    JsonOutcome expected = json_scan_value(&plain);
    // Levels that the event itself opens do not count there.
    bool too_deep = expected == JSON_BAD && strcmp(plain.why, "nested too deeply") == 0;
    require(outcome == expected || too_deep);
    if (outcome != JSON_GOOD || too_deep)
        return;
    require(scan.at == plain.at);
    require_within(event.name, event.whole);
    require_within(event.category, event.whole);
    require_within(event.pid, event.whole);
    require_within(event.tid, event.whole);
    require_within(event.kernel_hash, event.whole);
    if (event.insert_at)
        require_within((Slice){event.insert_at, 1}, event.whole);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t bytes)
{
    // A closing NUL, as the window has one; a byte further is an error of the sanitizer.
    char *text = malloc(bytes + 1);
    require(text != NULL);
    memcpy(text, data, bytes);
    text[bytes] = '\0';
    JsonScan scan = {text, text + bytes, NULL};
    JsonOutcome outcome = json_scan_value(&scan);
    if (outcome == JSON_GOOD) {
        const char *end = scan.at;
        json_scan_space(&scan);
        bool bracket = end[-1] == '}' || end[-1] == ']' || end[-1] == '"';
        JsonScan cut = {text, end - 1, NULL};
        require(!bracket || json_scan_value(&cut) == JSON_MORE);
    }
    Error error = {0};
    Json *json = json_parse(text, bytes, &error);
    bool accepted = outcome == JSON_GOOD && scan.at == text + bytes;
    bool number_at_end = outcome == JSON_MORE && json && json_is_number(json);
    bool comparable = !memchr(text, 0, bytes); // jansson takes a NUL for the end of the text
    if (comparable && (json || !refused_for_more_than_grammar(error.what, text, bytes)))
        require(number_at_end || accepted == (json != NULL));
    json_destroy(json);
    scan_as_event(text, bytes);
    free(text);
    return 0;
}
