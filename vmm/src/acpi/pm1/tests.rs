use std::sync::Mutex;

use proptest::prelude::*;

use super::*;

/// Every level that the line was set to.
#[derive(Default)]
struct Recorder(Mutex<Vec<bool>>);

impl LevelLine for Recorder {
    fn set_level(&self, asserted: bool) {
        self.0.lock().expect("no panic").push(asserted);
    }
}

impl Recorder {
    fn levels(&self) -> Vec<bool> {
        self.0.lock().expect("no panic").clone()
    }
}

fn pm1() -> (Pm1, Arc<Recorder>) {
    let line = Arc::new(Recorder::default());
    (Pm1::new(line.clone()), line)
}

fn read16(pm1: &Pm1, port: u16) -> u16 {
    let mut data = [0; 2];
    pm1.read(port, &mut data);
    u16::from_le_bytes(data)
}

fn write16(pm1: &Pm1, port: u16, value: u16) {
    assert_eq!(pm1.write(port, &value.to_le_bytes()), Pm1Write::Done);
}

#[test]
fn a_press_that_nobody_enabled_is_reported_and_leaves_no_trace() {
    let (pm1, line) = pm1();
    assert_eq!(pm1.press_power_button(), Press::NotEnabled);
    write16(&pm1, PM1A_ENABLE_PORT, ENABLE_BITS & !POWER_BUTTON);
    assert_eq!(pm1.press_power_button(), Press::NotEnabled);
    write16(&pm1, PM1A_ENABLE_PORT, POWER_BUTTON);
    assert_eq!((read16(&pm1, PM1A_STATUS_PORT), line.levels()), (0, vec![]));
}

#[test]
fn the_line_is_asserted_from_the_press_until_the_guest_clears_the_status() {
    let (pm1, line) = pm1();
    write16(&pm1, PM1A_ENABLE_PORT, POWER_BUTTON);
    assert_eq!(pm1.press_power_button(), Press::Raised);
    assert_eq!(pm1.press_power_button(), Press::Raised, "twice before it was noticed");
    assert_eq!((read16(&pm1, PM1A_STATUS_PORT), line.levels()), (0x100, vec![true]));
    write16(&pm1, PM1A_STATUS_PORT, !POWER_BUTTON);
    assert_eq!(read16(&pm1, PM1A_STATUS_PORT), 0x100, "other bits do not clear it");
    write16(&pm1, PM1A_STATUS_PORT, POWER_BUTTON);
    assert_eq!((read16(&pm1, PM1A_STATUS_PORT), line.levels()), (0, vec![true, false]));
    assert_eq!(pm1.press_power_button(), Press::Raised);
    assert_eq!(line.levels(), [true, false, true], "the next press is seen again");
}

#[test]
fn disabling_lowers_the_line_and_enabling_a_pending_event_raises_it() {
    let (pm1, line) = pm1();
    write16(&pm1, PM1A_ENABLE_PORT, POWER_BUTTON);
    assert_eq!(pm1.press_power_button(), Press::Raised);
    write16(&pm1, PM1A_ENABLE_PORT, 0);
    assert_eq!((read16(&pm1, PM1A_STATUS_PORT), line.levels()), (0x100, vec![true, false]));
    write16(&pm1, PM1A_ENABLE_PORT, POWER_BUTTON);
    assert_eq!(line.levels(), [true, false, true]);
}

#[test]
fn a_reset_forgets_the_press_and_the_listener() {
    let (pm1, line) = pm1();
    write16(&pm1, PM1A_ENABLE_PORT, POWER_BUTTON);
    assert_eq!(pm1.press_power_button(), Press::Raised);
    pm1.reset();
    assert_eq!(line.levels(), [true, false]);
    assert_eq!((read16(&pm1, PM1A_STATUS_PORT), read16(&pm1, PM1A_ENABLE_PORT)), (0, 0));
    assert_eq!(pm1.press_power_button(), Press::NotEnabled);
}

#[test]
fn enable_bits_read_back_and_status_bits_cannot_be_set() {
    let (pm1, line) = pm1();
    write16(&pm1, PM1A_ENABLE_PORT, 0xffff);
    assert_eq!(read16(&pm1, PM1A_ENABLE_PORT), 0x0721);
    write16(&pm1, PM1A_STATUS_PORT, 0xffff);
    assert_eq!((read16(&pm1, PM1A_STATUS_PORT), line.levels()), (0, vec![]));
    assert_eq!(read16(&pm1, PM1A_CONTROL_PORT), 1, "ACPI mode");
}

#[test]
fn only_s5_powers_off() {
    let (pm1, _) = pm1();
    assert_eq!(pm1.write(PM1A_CONTROL_PORT, &[0x00, 0x20]), Pm1Write::PowerOff);
    assert_eq!(pm1.write(PM1A_CONTROL_PORT, &[0x01, 0x20]), Pm1Write::PowerOff, "SCI_EN is kept");
    assert_eq!(
        pm1.write(PM1A_CONTROL_PORT + 1, &[0x20]),
        Pm1Write::PowerOff,
        "the upper byte alone"
    );
    assert_eq!(
        pm1.write(PM1A_ENABLE_PORT, &[0, 0, 0, 0x20]),
        Pm1Write::PowerOff,
        "with the enable register"
    );
    assert_eq!(pm1.write(PM1A_CONTROL_PORT, &[0x00, 0x00]), Pm1Write::Done, "SLP_EN is clear");
    assert_eq!(pm1.write(PM1A_CONTROL_PORT, &[0x00, 0x24]), Pm1Write::Done, "another sleep state");
    assert_eq!(pm1.write(PM1A_CONTROL_PORT, &[0x20]), Pm1Write::Done, "the lower byte");
    assert_eq!(pm1.write(PM1A_STATUS_PORT, &[0x20; 4]), Pm1Write::Done);
}

#[test]
fn accesses_of_any_width_meet_the_bytes_that_they_cover() {
    let (pm1, line) = pm1();
    assert_eq!(pm1.write(PM1A_ENABLE_PORT + 1, &[1]), Pm1Write::Done);
    assert_eq!(read16(&pm1, PM1A_ENABLE_PORT), POWER_BUTTON);
    assert_eq!(pm1.write(PM1A_ENABLE_PORT, &[0x20]), Pm1Write::Done);
    assert_eq!(read16(&pm1, PM1A_ENABLE_PORT), POWER_BUTTON | 0x20, "the other byte stays");
    assert_eq!(pm1.press_power_button(), Press::Raised);
    let mut both = [0; 4];
    pm1.read(PM1A_STATUS_PORT, &mut both);
    assert_eq!(both, [0, 1, 0x20, 1]);
    // Clears the status and disables in one access.
    assert_eq!(pm1.write(PM1A_STATUS_PORT, &[0, 1, 0, 0]), Pm1Write::Done);
    assert_eq!((read16(&pm1, PM1A_ENABLE_PORT), line.levels()), (0, vec![true, false]));
    let mut beyond = [0; 4];
    pm1.read(PM1A_CONTROL_PORT, &mut beyond);
    assert_eq!(beyond, [1, 0, 0xff, 0xff]);
}

#[test]
fn string_instructions_change_nothing() {
    let (pm1, _) = pm1();
    assert_eq!(pm1.write(PM1A_CONTROL_PORT, &[0, 0x20, 0, 0x20, 0, 0x20]), Pm1Write::Ignored);
    let mut data = [0; 64];
    pm1.read(PM1A_STATUS_PORT, &mut data);
    assert_eq!(data, [0xff; 64]);
}

#[derive(Debug, Clone)]
enum Step {
    Write(u16, Vec<u8>),
    Read(u16, usize),
    Press,
    Reset,
}

fn step() -> impl Strategy<Value = Step> {
    let port = FIRST_PORT..=LAST_PORT;
    prop_oneof![
        4 => (port.clone(), prop::collection::vec(any::<u8>(), 0..9)).prop_map(|(p, d)| Step::Write(p, d)),
        1 => (port, 0usize..9).prop_map(|(port, len)| Step::Read(port, len)),
        2 => Just(Step::Press),
        1 => Just(Step::Reset),
    ]
}

proptest! {
    /// Whatever a guest does, the line is what the registers say, and is set only when it changes.
    #[test]
    fn the_line_follows_the_registers(steps in prop::collection::vec(step(), 0..60)) {
        let (pm1, line) = pm1();
        for step in steps {
            match step {
                Step::Write(port, data) => _ = pm1.write(port, &data),
                Step::Read(port, len) => pm1.read(port, &mut vec![0; len]),
                Step::Press => {
                    let enabled = read16(&pm1, PM1A_ENABLE_PORT) & POWER_BUTTON != 0;
                    prop_assert_eq!(pm1.press_power_button() == Press::Raised, enabled);
                }
                Step::Reset => pm1.reset(),
            }
            let wanted = read16(&pm1, PM1A_STATUS_PORT) & read16(&pm1, PM1A_ENABLE_PORT) != 0;
            let levels = line.levels();
            prop_assert_eq!(levels.last().copied().unwrap_or(false), wanted);
            prop_assert!(levels.windows(2).all(|pair| pair[0] != pair[1]));
        }
    }
}
