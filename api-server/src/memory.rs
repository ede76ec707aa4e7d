//! Where memory comes from: jemalloc, for all of the process, SQLite among it.
//!
//! With glibc's allocator a third of the processor's time went into it while thousands of agents came back: many threads
//! shared one arena, since with one for each the server kept half as much again as it used. jemalloc has an arena for
//! each core and gives back what is free, by a thread of its own.

use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

/// Read by jemalloc before `main`: <https://jemalloc.net/jemalloc.3.html#tuning>. The first byte of a C string.
#[allow(
    unsafe_code,
    reason = "jemalloc looks for this symbol; it is a pointer to a string that never changes"
)]
#[unsafe(export_name = "malloc_conf")]
static TUNING: &u8 = &b"percpu_arena:percpu,background_thread:true\0"[0];
