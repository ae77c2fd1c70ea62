// ledger.h -- the watchdog: a side thread on every rank that compares what the ranks do together,
// and ends the job with one message when they no longer do the same.
//
// What each rank does is in its ring of calls (harness/calls.h). The lowest rank that answers is
// the hub: a few times a second its thread asks all others for their state, compares, and when
// something is wrong asks for the rings and says what. Found are:
//   mismatch   a rank makes another call than the others, or with other numbers: at once
//   lost       a rank's process ended without a word: at once
//   stall      a rank waits in a call to which another does not come, within watchdog_s. A rank
//              whose main thread goes on using the processor is working and gets PATIENCE times as
//              long: so rank 0 may compute a reference while the others wait, but no loop is
//              endless. Nobody waits, nothing is wrong: all ranks may compute as long as they like.
// A rank that fails by itself (check_failed) asks the hub first, since its error may be another's
// mistake; then one of the two speaks, the other does not.
//
// Why sockets, and not MPI as everything else: the main thread sits inside MPI when it matters, and
// MPI is started with MPI_THREAD_FUNNELED, under which no other thread may call it (with
// MPI_THREAD_MULTIPLE every message of the run would pay for locks, and a rank stopped in MPI could
// still hold one). So addresses are exchanged over MPI at the start, and from then on TCP is
// enough: over the loopback when all ranks share a host, else over any IPv4 interface; a random
// token, told over MPI, keeps strangers out. A dead process closes its sockets: the survivors know
// before mpirun's KILL, a second after its TERM, reaches them. No connection is made between two
// ranks unless one of them is the hub; when the hub is lost or silent, everyone goes to the next
// rank.
//
// The thread never calls MPI, allocates only when something is wrong, and ends the process by
// _exit: nothing that hangs may be asked to clean up.
#pragma once

#include "harness/run.h"

// The commands start and stop it through harness/run.h: `run_watch`, with the options --watchdog_s
// and --fault.
typedef struct Ledger Ledger;
