// torch_log_line.c -- one physical line taken apart: launcher labels and colours off, then one of
// the three forms in which PyTorch's logging prints (torch/_logging/_internal.py).
//
//   [rank0]:V1206 15:18:15.925000 1500233 torch/_inductor/graph.py:2045] [0/0] [__output_code] text
//   DEBUG:torch._inductor.codecache.__output_code:text
//   [2024-02-13 19:34:50,591] [0/0] torch._inductor.graph.__output_code: [DEBUG] text
//
// Written out by hand and not as expressions: this runs for every line, and most are of the first
// kind.
#include "results/graph/torch_log_parser.h"

#include <string.h>

static bool is_digit(char c)
{
    return c >= '0' && c <= '9';
}

// Does the text have this shape? '9' stands for a digit, '~' for any character.
static bool has_shape(Slice text, const char *shape)
{
    size_t bytes = strlen(shape);
    if (text.bytes < bytes)
        return false;
    for (size_t i = 0; i < bytes; i++)
        if (shape[i] == '9' ? !is_digit(text.at[i]) : shape[i] != '~' && shape[i] != text.at[i])
            return false;
    return true;
}

// Takes "[<word><number>]:" or "[1,3]<stderr>:" off, as torchrun, torch's distributed logging and
// mpirun --tag-output put in front.
static bool take_bracket_label(Slice *text, int *rank)
{
    static const char *const words[] = {"[rank", "[default", "["};
    int64_t number = 0;
    for (size_t i = 0; i < COUNT_OF(words); i++) {
        Slice rest = *text;
        if (!slice_take(&rest, words[i]) || !slice_take_number(&rest, &number))
            continue;
        bool by_mpirun = i == 2;
        if (by_mpirun && !(slice_take(&rest, ",") && slice_take_number(&rest, &number)))
            return false;
        bool closed = by_mpirun ? slice_take(&rest, "]<stdout>:") || slice_take(&rest, "]<stderr>:")
                                : slice_take(&rest, "]:");
        if (!closed || number > INT32_MAX)
            return false;
        *rank = (int)number;
        *text = rest;
        return true;
    }
    return false;
}

// "2024-12-06T15:18:15.9250000Z ", as CI systems stamp lines.
static bool take_stamp(Slice *text)
{
    if (!has_shape(*text, "9999-99-99T99:99:99"))
        return false;
    size_t space = slice_find_char(slice_until(*text, 40), ' ');
    if (space == 40 || space >= text->bytes)
        return false;
    *text = slice_after(*text, space + 1);
    return true;
}

static bool begins_message(Slice text)
{
    static const char *const levels[] = {"DEBUG:", "INFO:", "WARNING:", "ERROR:", "CRITICAL:"};
    for (size_t i = 0; i < COUNT_OF(levels); i++)
        if (slice_starts(text, levels[i]))
            return true;
    return has_shape(text, "~9999 99:99:99.") || has_shape(text, "[9999-99-99 99:99:99,");
}

// srun --label puts "3: " in front. Code may look like that too, so the label counts only in a file
// where one stood before a line of the logging.
static bool take_srun_label(struct TorchLogParser *parser, Slice *text, int *rank)
{
    Slice rest = *text;
    int64_t number;
    while (rest.bytes && rest.at[0] == ' ' && text->bytes - rest.bytes < 6)
        rest = slice_after(rest, 1);
    if (!slice_take_number(&rest, &number) || number > INT32_MAX || !slice_take(&rest, ":"))
        return false;
    slice_take(&rest, " ");
    if (!parser->labelled && !begins_message(rest))
        return false;
    parser->labelled = true;
    *rank = (int)number;
    *text = rest;
    return true;
}

static Slice without_colours(struct TorchLogParser *parser, Slice line)
{
    parser->plain.count = 0;
    while (line.bytes) {
        size_t escape = slice_find_char(line, '\x1b');
        buffer_append(&parser->plain, slice_until(line, escape));
        line = slice_after(line, escape);
        if (!slice_take(&line, "\x1b"))
            break;
        if (slice_take(&line, "[")) {
            size_t bytes = 0;
            while (bytes < line.bytes && (is_digit(line.at[bytes]) || line.at[bytes] == ';'))
                bytes++;
            line = slice_after(line, bytes + 1); // and the letter
        }
    }
    return (Slice){parser->plain.items, (size_t)parser->plain.count};
}

// "[0/0] ", "[0/0_1] ", "[!1/3/0] ", "[-] " and "[__output_code] " in any number.
static void take_tags(LogLine *line, Slice *artifact)
{
    for (;;) {
        Slice rest = line->text;
        if (!slice_take(&rest, " [") && !slice_take(&rest, "["))
            return;
        size_t close = slice_find_char(slice_until(rest, 80), ']');
        Slice tag = slice_until(rest, close);
        if (close >= rest.bytes || tag.bytes == 0)
            return;
        bool names_artifact = slice_starts(tag, "__");
        bool names_compile = slice_is(tag, "-") || tag.at[0] == '!' || is_digit(tag.at[0]);
        if (!names_artifact && !names_compile)
            return;
        *(names_artifact ? artifact : &line->compile_id) = tag;
        line->text = slice_after(rest, close + 1);
    }
}

static uint64_t mixed(uint64_t hash, Slice text)
{
    for (size_t i = 0; i < text.bytes; i++)
        hash = (hash ^ (unsigned char)text.at[i]) * UINT64_C(1099511628211);
    return hash;
}

static bool parse_prefix(LogLine *line)
{
    Slice rest = line->text, artifact = {"", 0};
    if (!has_shape(rest, "~9999 99:99:99.") || !memchr("VIWEC", rest.at[0], 5))
        return false;
    Slice head = slice_until(rest, 256);
    size_t close = slice_find(head, "] ");
    if (close == head.bytes && slice_ends(rest, "]") && rest.bytes == head.bytes)
        close--; // an editor took the space at the end
    if (close == head.bytes)
        return false;
    rest = slice_after(slice_until(rest, close), strlen("V1206 15:18:15."));
    int64_t ignored;
    if (!slice_take_number(&rest, &ignored) || !slice_take(&rest, " ") ||
        !slice_take_number(&rest, &line->process) || !slice_take(&rest, " "))
        return false;
    line->form = LINE_PREFIX;
    line->text = slice_after(line->text, close + 1);
    take_tags(line, &artifact);
    slice_take(&line->text, " ");
    line->message = mixed(mixed(UINT64_C(14695981039346656037), rest), artifact);
    return true;
}

// The form of releases up to 2.2.
static bool parse_bracketed(LogLine *line)
{
    Slice rest = line->text, artifact = {"", 0};
    if (!has_shape(rest, "[9999-99-99 99:99:99,"))
        return false;
    rest = slice_after(rest, slice_find_char(slice_until(rest, 40), ']') + 1);
    LogLine inner = *line;
    inner.text = rest;
    take_tags(&inner, &artifact);
    rest = inner.text;
    slice_take(&rest, " ");
    size_t level = slice_find(slice_until(rest, 256), ": [");
    Slice logger = slice_until(rest, level);
    rest = slice_after(rest, level + strlen(": ["));
    size_t close = slice_find_char(slice_until(rest, 16), ']');
    if (close >= rest.bytes || slice_find_char(logger, ' ') != logger.bytes)
        return false;
    *line = inner;
    line->form = LINE_PREFIX;
    line->text = slice_after(rest, close + 1);
    slice_take(&line->text, " ");
    line->message = mixed(UINT64_C(14695981039346656037), logger);
    return true;
}

static bool parse_short(LogLine *line)
{
    static const char *const levels[] = {"DEBUG:", "INFO:", "WARNING:", "ERROR:", "CRITICAL:"};
    Slice rest = line->text;
    if (rest.bytes == 0 || !memchr("DIWEC", rest.at[0], 5))
        return false;
    for (size_t i = 0; i < COUNT_OF(levels); i++) {
        if (!slice_take(&rest, levels[i]))
            continue;
        size_t bytes = 0;
        while (bytes < rest.bytes && rest.at[bytes] != ':' && rest.at[bytes] != ' ')
            bytes++;
        if (bytes == 0 || bytes == rest.bytes || rest.at[bytes] != ':')
            return false;
        line->form = LINE_SHORT;
        line->text = slice_after(rest, bytes + 1);
        return true;
    }
    return false;
}

LogLine log_line_parse(struct TorchLogParser *parser, Slice text)
{
    LogLine line = {.form = LINE_BARE, .rank = -1, .compile_id = {"", 0}};
    while (text.bytes && (text.at[text.bytes - 1] == '\r' || text.at[text.bytes - 1] == '\n'))
        text.bytes--;
    if (slice_find_char(text, '\x1b') < text.bytes)
        text = without_colours(parser, text);
    bool may_have_label =
        text.bytes > 0 && (text.at[0] == '[' || text.at[0] == ' ' || is_digit(text.at[0]));
    while (may_have_label && (take_bracket_label(&text, &line.rank) ||
                              take_srun_label(parser, &text, &line.rank) || take_stamp(&text))) {
    }
    line.text = text;
    if (!parse_prefix(&line) && !parse_bracketed(&line))
        parse_short(&line);
    return line;
}
