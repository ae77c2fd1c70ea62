// recipe.h -- the recipes: how the weights and the activations of a product are quantised, one row
// per name.
//
// Names without capitals are torchao's numerics (and a few others', see `source`); names in
// capitals are the schemes of compressed-tensors with its numerics. Adding a recipe is adding a row
// to recipe_table.c; arithmetic that no method of rule.h has is a header quant/method_<name>.h and
// its row in quantise.c.
#pragma once

#include "harness/check.h"
#include "quant/rule.h"

DECLARATIONS_BEGIN

enum { RECIPE_NAME_BYTES = 96, RECIPE_GROUPS_MAX = 4 };

// How the two operands are multiplied; kernels/quant_gemm.h has the arithmetic.
typedef enum QuantProduct {
    PRODUCT_VALUES,  // what the codes stand for, rounded to the operands' own type
    PRODUCT_SCALED,  // codes; every block of columns has its sum times both scales
    PRODUCT_ROUNDED, // codes; times the row's scale, rounded, times the weight row's scale
} QuantProduct;

typedef struct Recipe {
    const char *name;
    const char *source; // whose numerics: "torchao", "compressed-tensors", "MSLK", "DeepSeek"
    QuantRule weights;
    QuantRule activations;         // method QUANT_NONE: they stay in their own type
    int groups[RECIPE_GROUPS_MAX]; // block_columns that group= may set; 0 ends the list
    bool has_modes;                // mode= may set mx_mode
    bool has_lower_bound;          // lower_bound= may set the activations' amax_minimum
    QuantProduct form;             // how the two are multiplied
    bool trains;         // gradients may be quantised, too (experiments/model/moe_quant.h)
    const char *product; // the form in one line
    const char *note;    // one line
} Recipe;

extern const Recipe recipe_table[]; // ends with a NULL name
enum { RECIPES_MAX = 64 };

// Local. "mxfp8", "mxfp4:mode=floor", "int4_weight_only:group=32", "fp8_row:lower_bound=0": a name
// and its options. Error 2: no such recipe (with the nearest name), no such option, a value that
// the recipe does not take.
bool recipe_parse(const char *text, Recipe *recipe, Error *error);
// Local. The next of a list, "fp8_row,mxfp8:mode=floor"; *list moves on. False at its end and, with
// an error, at what recipe_parse refuses.
bool recipe_next(const char **list, Recipe *recipe, Error *error);
// Local. The text that recipe_parse would read it from; options only where they differ from the
// row's.
void recipe_format(const Recipe *recipe, char *text, size_t bytes);

// Local. In words, for tables: "e4m3fn", "1 x 128", "amax / 448, rounded to the input's type".
const char *quant_code_name(QuantCode code);
const char *quant_mode_name(MxMode mode);
void quant_rule_blocks(const QuantRule *rule, char *text, size_t bytes);
void quant_rule_scale(const QuantRule *rule, char *text, size_t bytes);
void quant_rule_needs(const QuantRule *rule, char *text, size_t bytes); // of the shape

DECLARATIONS_END
