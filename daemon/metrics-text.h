// SPDX-License-Identifier: LGPL-2.1-or-later
// Metrics in Prometheus' text exposition format, version 0.0.4. All samples of a family follow its
// head. Pure.
#pragma once

#include <glib.h>

// `type`: "counter", "gauge" or "histogram".
void metrics_text_family(GString *text, const char *name, const char *type, const char *help);
// Pairs of labels and their values (UTF-8), and NULL. A label without a value is left out.
void metrics_text_sample(GString *text, const char *name, double value, ...) G_GNUC_NULL_TERMINATED;
