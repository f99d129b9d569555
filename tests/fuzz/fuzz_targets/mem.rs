#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| device_fuzz::fuzzing::run("mem", data));
