#pragma once

namespace pama {

// The generation of x86-64, 1 to 4, whose tiles `gram` runs; 1 on any other processor.
int gram_level();

// That of the other loops (PAMA_CLONES in rows.h).
int clone_level();

}  // namespace pama
