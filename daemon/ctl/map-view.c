// SPDX-License-Identifier: LGPL-2.1-or-later
// A row for each layer, a column for each part; the darker, the more of the part is the layer's.
#include "map-view.h"

#include <glib.h>
#include <stdio.h>

#include "field.h"
#include "units.h"

// How much of part `i` is this layer's, 0 to 1.
static double share_of(const json_t *map, const json_t *layer, size_t i)
{
    uint64_t part = field_uint(map, "part-size"), off = i * part;
    uint64_t len = MIN(part, field_uint(map, "size") - off);
    uint64_t own = (uint64_t)json_integer_value(json_array_get(field(layer, "parts"), i));
    return len ? (double)MIN(own, len) / (double)len : 0;
}

// -- a terminal -----------------------------------------------------------------------------------

// Of the 256 colours, those that are told apart on dark and bright ground.
static const unsigned char layer_colors[] = {33, 208, 35, 170, 214, 44, 161, 106};

static const char *shade(double share)
{
    static const char *const shades[] = {"░", "▒", "▓", "█"};
    return share <= 0 ? "·" : shades[(unsigned)MIN(share * 4, 3)];
}

static void print_row(const Output *output, const json_t *map, const json_t *layer, size_t number)
{
    size_t n = json_array_size(field(layer, "parts"));
    bool is_on = false; // the colour
    fputs("▕", stdout);
    for (size_t i = 0; i < n; i++) {
        double share = share_of(map, layer, i);
        if (output->has_color && is_on != (share > 0)) {
            is_on = share > 0;
            if (is_on)
                printf("\033[38;5;%um", layer_colors[number % G_N_ELEMENTS(layer_colors)]);
            else
                fputs("\033[0;2m", stdout);
        }
        fputs(shade(share), stdout);
    }
    printf("%s▏\n", output->has_color ? "\033[0m" : "");
}

static void print_axis(const json_t *map, unsigned indent, size_t n_columns)
{
    g_autofree char *end = units_size(field_uint(map, "size"));
    g_autofree char *middle = units_size(field_uint(map, "part-size") * (n_columns / 2));
    int half = (int)(n_columns / 2), left = half - 1, right = (int)n_columns - half;
    int middle_width = (int)output_width(middle), end_width = (int)output_width(end);
    if (left < 1 || right < middle_width + end_width)
        return;
    printf("%*s0%*s%s%*s%s\n", (int)indent, "", left, "", middle,
           right - middle_width - end_width + 1, "", end);
}

void map_view_print(const Output *output, const json_t *map)
{
    size_t i;
    const json_t *layer, *layers = field(map, "layers");
    unsigned width = 0;
    enum { SIZE_COLUMNS = 9 };
    g_autofree char *size = units_size(field_uint(map, "size"));
    g_autofree char *part = units_size(field_uint(map, "part-size"));
    json_array_foreach(layers, i, layer) width =
        MAX(width, output_width(field_text(layer, "title")));
    printf("%s%s%s  %s, a column is %s; what is seen of each layer\n",
           output_style(output, STYLE_NAME), field_text(map, "name"),
           output_style(output, STYLE_PLAIN), size, part);
    json_array_foreach(layers, i, layer)
    {
        g_autofree char *title = output_clean(field_text(layer, "title"));
        g_autofree char *shown = units_size(field_uint(layer, "shown"));
        printf("%s%*s  %*s  ", title, (int)(width - output_width(title)), "", SIZE_COLUMNS, shown);
        print_row(output, map, layer, i);
    }
    print_axis(map, width + SIZE_COLUMNS + 5,
               json_array_size(field(json_array_get(layers, 0), "parts")));
}

// -- a page ---------------------------------------------------------------------------------------

enum { LABEL_X = 10, MAP_X = 330, MAP_WIDTH = 1024, ROW = 26, BAR = 20, TOP = 16, AXIS = 34 };

static const char style[] =
    "body{font:14px system-ui,sans-serif;margin:24px;background:#fff;color:#222}\n"
    "svg{max-width:100%;height:auto}text{font:13px system-ui,sans-serif;fill:currentColor}\n"
    ".size{text-anchor:end;opacity:.7}.ground{fill:currentColor;opacity:.07}\n"
    "@media(prefers-color-scheme:dark){body{background:#161616;color:#ddd}}\n";

// Hues that lie far from each other, however many there are.
static double hue_of(size_t number)
{
    return (double)((210 + number * 137) % 360);
}

// Parts next to each other that look alike are one rectangle.
static void add_rects(GString *page, const json_t *map, const json_t *layer, double y)
{
    size_t n = json_array_size(field(layer, "parts"));
    double part = (double)field_uint(map, "part-size");
    double scale = MAP_WIDTH / (double)MAX(field_uint(map, "size"), 1);
    for (size_t i = 0, end; i < n; i = end) {
        int percent = (int)(share_of(map, layer, i) * 100 + 0.5);
        if (!percent && share_of(map, layer, i) > 0)
            percent = 1;
        end = i + 1;
        while (end < n && (int)(share_of(map, layer, end) * 100 + 0.5) == percent)
            end++;
        if (!percent)
            continue;
        double x = (double)i * part * scale, stop = MIN((double)end * part * scale, MAP_WIDTH);
        char at[3][G_ASCII_DTOSTR_BUF_SIZE];
        g_string_append_printf(
            page, "<rect x=\"%s\" y=\"%s\" width=\"%s\" height=\"%d\" fill-opacity=\"%d%%\"/>",
            g_ascii_formatd(at[0], sizeof(at[0]), "%.2f", MAP_X + x),
            g_ascii_formatd(at[1], sizeof(at[1]), "%.0f", y),
            g_ascii_formatd(at[2], sizeof(at[2]), "%.2f", MAX(stop - x, 0.5)), (int)BAR,
            20 + percent * 80 / 100);
    }
}

static void add_layer(GString *page, const json_t *map, const json_t *layer, size_t number)
{
    unsigned y = TOP + (unsigned)number * ROW;
    g_autofree char *shown = units_size(field_uint(layer, "shown"));
    g_autofree char *data = units_size(field_uint(layer, "data"));
    g_autofree char *title = g_markup_escape_text(field_text(layer, "title"), -1);
    g_autofree char *clean = output_clean(field_text(layer, "filename"));
    g_autofree char *file = g_markup_escape_text(clean, -1);
    g_string_append_printf(
        page,
        "<g class=\"layer\" fill=\"hsl(%d 70%% 50%%)\"><title>%s: %s; has %s, of "
        "which %s are seen</title>"
        "<text x=\"%d\" y=\"%u\">%s</text>"
        "<text class=\"size\" x=\"%d\" y=\"%u\">%s</text>"
        "<rect class=\"ground\" x=\"%d\" y=\"%u\" width=\"%d\" height=\"%d\"/>",
        (int)hue_of(number), title, file, data, shown, (int)LABEL_X, y + 15, title, MAP_X - 10,
        y + 15, shown, (int)MAP_X, y, (int)MAP_WIDTH, (int)BAR);
    add_rects(page, map, layer, y);
    g_string_append(page, "</g>\n");
}

static void add_axis(GString *page, const json_t *map, unsigned y)
{
    enum { N_TICKS = 4 };
    for (unsigned i = 0; i <= N_TICKS; i++) {
        g_autofree char *text = units_size(field_uint(map, "size") / N_TICKS * i);
        g_string_append_printf(page, "<text x=\"%u\" y=\"%u\" text-anchor=\"%s\">%s</text>",
                               MAP_X + MAP_WIDTH / N_TICKS * i, y,
                               i == 0         ? "start"
                               : i == N_TICKS ? "end"
                                              : "middle",
                               text);
    }
}

char *map_view_html(const json_t *map)
{
    size_t i, n = json_array_size(field(map, "layers"));
    const json_t *layer;
    unsigned height = TOP + (unsigned)n * ROW + AXIS;
    g_autofree char *name = g_markup_escape_text(field_text(map, "name"), -1);
    g_autofree char *size = units_size(field_uint(map, "size"));
    GString *page = g_string_new(NULL);
    g_string_append_printf(page,
                           "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\">\n"
                           "<title>%s: which layer owns what</title>\n<style>%s</style></head>\n"
                           "<body><h1>%s</h1><p>%s. What is seen of each layer; the darker, the "
                           "more of a place is the layer's.</p>\n"
                           "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 %d %u\" "
                           "width=\"%d\" height=\"%u\" role=\"img\">\n",
                           name, style, name, size, MAP_X + MAP_WIDTH + 16, height,
                           MAP_X + MAP_WIDTH + 16, height);
    json_array_foreach(field(map, "layers"), i, layer) add_layer(page, map, layer, i);
    add_axis(page, map, TOP + (unsigned)n * ROW + 14);
    g_string_append(page, "\n</svg></body></html>\n");
    return g_string_free(page, FALSE);
}
