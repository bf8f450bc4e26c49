// SPDX-License-Identifier: LGPL-2.1-or-later
// What valgrind cannot find out itself, as macros that cost a few instructions outside it, or
// nothing where its headers are missing: the stacks of fibers, and memory that the ring filled.
#pragma once

#if __has_include(<valgrind/memcheck.h>)
#include <valgrind/memcheck.h>
#else
#define VALGRIND_STACK_REGISTER(start, end) 0
#define VALGRIND_STACK_DEREGISTER(id) ((void)(id))
#define VALGRIND_MAKE_MEM_DEFINED(address, len) ((void)(address))
#define RUNNING_ON_VALGRIND 0
#endif
