// Generations of x86-64 that loops are compiled for, of which the processor takes the latest it
// can.
#pragma once

// Compiled for three generations of processors, chosen when the library is loaded; or, to test one
// of them, for that which PAMA_ONE_CLONE and -march ask for.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && \
    !defined(__SANITIZE_THREAD__) && !defined(PAMA_ONE_CLONE)
#define PAMA_CLONED
#define PAMA_CLONES __attribute__((target_clones("default", "arch=x86-64-v3", "arch=x86-64-v4")))
#else
#define PAMA_CLONES
#endif

namespace pama {

// The generation of x86-64, 1 to 4, whose tiles `gram` runs; 1 on any other processor.
int gram_level();

// That of the other loops (PAMA_CLONES).
int clone_level();

}  // namespace pama
