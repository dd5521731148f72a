// Marks a CPU loop to be compiled for three instruction sets, of which the loader picks one.
#pragma once

#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__) && !defined(__SANITIZE_ADDRESS__)
#define DYNSLICE_MULTIVERSION __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define DYNSLICE_MULTIVERSION
#endif

// Of what such loops call: left to itself the compiler may make a function of it, for the oldest processors only.
#if defined(__GNUC__)
#define DYNSLICE_IN_LOOPS [[gnu::always_inline]] inline
#else
#define DYNSLICE_IN_LOOPS inline
#endif
