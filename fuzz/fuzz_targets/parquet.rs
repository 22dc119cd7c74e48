#![no_main]

#[path = "../drivers.rs"]
mod drivers;

libfuzzer_sys::fuzz_target!(|bytes: &[u8]| {
    drivers::let_caught_panics_be();
    drivers::reader("a.parquet", bytes)
});
