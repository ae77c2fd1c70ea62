// ledger.h -- the watchdog: a side thread on every rank that compares what the ranks do together,
// and ends the job with one message when they no longer do the same.
//
// What each rank does is in its ring of calls (harness/calls.h). The lowest rank that answers is
// the hub: a few times a second its thread asks all others for their state, compares, and when
// something is wrong asks for the rings and says what. It finds
//   a mismatch  a rank makes another call than the others, or with other numbers: at once
//   a lost rank its process ended without a word: at once
//   a stall     a rank waits in a call to which another does not come, within watchdog_s. A rank
//               whose main thread goes on using the processor is at work and gets LEDGER_PATIENCE
//               times as long: so rank 0 may compute a reference while the others wait, but no loop
//               is endless. Where nobody waits nothing is wrong: all ranks may compute for hours.
// A rank that fails by itself (check.h) asks the hub first, since its error may be another's
// mistake; then one of the two speaks, and the other does not.
//
// Why sockets, and not MPI as everything else: when it matters, the main thread sits inside MPI,
// which is started with MPI_THREAD_FUNNELED, so no other thread may call it. (Under
// MPI_THREAD_MULTIPLE every message of the run would pay for locks, and a rank that hangs could
// still hold one.) Addresses are exchanged over MPI at the start; from then on TCP is enough: over
// the loopback when all ranks share a host, else over any IPv4 interface; a random token, told over
// MPI, keeps strangers out. A dead process closes its sockets, so the survivors know before
// mpirun's KILL reaches them, a second after its TERM: that TERM needs no handler, the report is
// out by then. Only the hub has connections; when it is lost or silent, all go to the next rank.
//
// The thread never calls MPI, and ends the process by _exit: nothing that hangs is asked to clean
// up. Without a hang it costs a few messages per rank and second.
#pragma once

#include "harness/run.h"

enum { LEDGER_PATIENCE = 20 };

// The commands start and stop it through harness/run.h: `run_watch`, with the options --watchdog_s
// and --fault.
typedef struct Ledger Ledger;
