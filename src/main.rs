//! The `doorward` program: everything is in the library.

use std::process::ExitCode;

#[cfg(target_os = "linux")]
#[global_allocator]
static ALLOCATOR: tikv_jemallocator::Jemalloc = tikv_jemallocator::Jemalloc;

/// jemalloc's settings, which it looks for under this name. They stand in the program, so that every build has them.
///
/// `oversize_threshold`: blocks of half a megabyte and more go back to the system at once. sled reserves tables of
/// megabytes that stay empty, once to check a copy of the store and once to open it: memory that was used before has to
/// be cleared, and then counts. Smaller values slow responses of 64 KB.
///
/// `tcache_nslots_small_min`: a thread keeps 128 freed blocks of each small size for itself, not 20. hyper's buffers of
/// 8 KB come and go with the requests that are under way, and what a thread does not keep goes through memory that all
/// threads share. With 64 connections the allocator takes 1.2 % of the processor time and not 3.1 % (docs/performance.md).
#[cfg(target_os = "linux")]
#[expect(unsafe_code, reason = "jemalloc takes a program's own settings only by the name of a symbol")]
#[unsafe(export_name = "_rjem_malloc_conf")]
pub static ALLOCATOR_SETTINGS: &[u8; 54] = b"oversize_threshold:524288,tcache_nslots_small_min:128\0";

fn main() -> ExitCode {
    doorward::cli::run()
}
