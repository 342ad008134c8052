// Included before everything else: a forbidden zone after each array in shared
// memory, which the next launch with shared memory keeps.
#pragma once

#include "shim/block.h"

#define MMVSSM_EMULATED
#define MMVSSM_SHARED_GAP 32
#define MMVSSM_NOTE_GAP(offset, bytes) shim::note_gap(offset, bytes)
