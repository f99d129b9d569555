//! Reads back the AML that the DSDT is made of, by the grammar of ACPI 6.5 §20.2 and the descriptors of §6.4.

use super::*;

/// What a device says of itself.
#[derive(Debug, Default, PartialEq, Eq)]
struct Found {
    path: String,
    hid: String,
    uid: u64,
    status: u64,
    memory: Vec<(u32, u32)>,
    ports: Vec<(u16, u16, u8)>,
    /// GSI and flags of the extended interrupt descriptor.
    interrupts: Vec<(u32, u8)>,
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, len: usize) -> &'a [u8] {
        let (taken, rest) = self.0.split_at(len);
        self.0 = rest;
        taken
    }

    fn byte(&mut self) -> u8 {
        self.take(1)[0]
    }

    fn u16(&mut self) -> u16 {
        u16::from_le_bytes(self.take(2).try_into().expect("two bytes"))
    }

    fn u32(&mut self) -> u32 {
        u32::from_le_bytes(self.take(4).try_into().expect("four bytes"))
    }

    /// The body of a package whose PkgLength comes next.
    fn package(&mut self) -> Self {
        let before = self.0.len();
        let lead = self.byte();
        let more = usize::from(lead >> 6);
        let mut len = usize::from(if more == 0 { lead & 0x3f } else { lead & 0xf });
        for index in 0..more {
            len |= usize::from(self.byte()) << (4 + 8 * index);
        }
        let own = before - self.0.len();
        Reader(self.take(len - own))
    }

    fn name(&mut self) -> String {
        let root = self.0.starts_with(b"\\").then(|| self.byte()).map_or("", |_| "\\");
        root.to_owned() + std::str::from_utf8(self.take(4)).expect("a name of ASCII")
    }

    fn integer(&mut self) -> u64 {
        match self.byte() {
            small @ (0 | 1) => small.into(),
            0x0a => self.byte().into(),
            0x0b => self.u16().into(),
            0x0c => self.u32().into(),
            other => panic!("{other:#x} begins no integer"),
        }
    }

    /// A _HID: a string, or an EISA id as an integer.
    fn hid(&mut self) -> String {
        if self.0[0] != 0x0d {
            let id = u32::try_from(self.integer()).expect("an EISA id").swap_bytes();
            let letter =
                |shift: u32| char::from(0x40 + u8::try_from(id >> shift & 0x1f).expect("5 bits"));
            return [26, 21, 16].map(letter).iter().collect::<String>()
                + &format!("{:04X}", id & 0xffff);
        }
        let end = self.0.iter().position(|&byte| byte == 0).expect("a NUL");
        let text = self.take(end + 1);
        std::str::from_utf8(&text[1..end]).expect("ASCII").to_owned()
    }

    fn resources(&mut self, found: &mut Found) {
        assert_eq!(self.byte(), 0x11, "a Buffer");
        let mut buffer = self.package();
        let len = buffer.integer();
        assert_eq!(buffer.0.len() as u64, len, "the buffer is as long as it says");
        loop {
            match buffer.byte() {
                0x79 => break,
                0x47 => {
                    assert_eq!(buffer.byte(), 1, "16-bit decode");
                    let ports = (buffer.u16(), buffer.u16());
                    let (_alignment, len) = (buffer.byte(), buffer.byte());
                    found.ports.push((ports.0, ports.1, len));
                }
                0x86 => {
                    assert_eq!((buffer.u16(), buffer.byte()), (9, 1), "length, read and write");
                    found.memory.push((buffer.u32(), buffer.u32()));
                }
                0x89 => {
                    assert_eq!(buffer.u16(), 6);
                    let (flags, count) = (buffer.byte(), buffer.byte());
                    assert_eq!(count, 1);
                    found.interrupts.push((buffer.u32(), flags));
                }
                other => panic!("unknown resource descriptor {other:#x}"),
            }
        }
        assert_eq!(buffer.0, [0], "the end tag's checksum, not used");
    }

    fn device(&mut self, scope: &str) -> Found {
        assert_eq!(self.take(2), [0x5b, 0x82], "a Device");
        let mut body = self.package();
        let mut found = Found { path: format!("{scope}.{}", body.name()), ..Found::default() };
        while !body.0.is_empty() {
            assert_eq!(body.byte(), 0x08, "a Name");
            match body.name().as_str() {
                "_HID" => found.hid = body.hid(),
                "_UID" => found.uid = body.integer(),
                "_STA" => found.status = body.integer(),
                "_CRS" => body.resources(&mut found),
                other => panic!("unknown name {other}"),
            }
        }
        found
    }
}

fn devices(tables: &Tables) -> Vec<Found> {
    let mut aml = Reader(&dsdt(tables.bytes())[36..]);
    assert_eq!((aml.byte(), aml.name()), (0x08, "\\_S5_".to_owned()));
    assert_eq!(aml.byte(), 0x12, "a Package");
    assert_eq!(aml.package().0, [4, 0, 0, 0, 0], "SLP_TYP 0");
    assert_eq!(aml.byte(), 0x10, "a Scope");
    let mut scope = aml.package();
    assert!(aml.0.is_empty(), "nothing else");
    let name = scope.name();
    let mut found = Vec::new();
    while !scope.0.is_empty() {
        found.push(scope.device(&name));
    }
    found
}

#[test]
fn every_slot_is_a_device_with_its_window_and_an_edge_of_its_own() {
    for count in [0, 1, 2, VIRTIO_MMIO_SLOTS] {
        let found = devices(&tables(1, count));
        let virtio: Vec<_> = found.iter().filter(|device| device.hid == "LNRO0005").collect();
        assert_eq!(virtio.len(), usize::from(count));
        for (uid, (device, slot)) in virtio.iter().zip(slots(count)).enumerate() {
            assert_eq!((device.uid, device.status), (uid as u64, 0xf));
            assert_eq!(device.path, format!("\\_SB_.VR{uid:02X}"));
            assert_eq!(device.memory, [(u32::try_from(slot.base).expect("low"), 0x1000)]);
            // Consumer and edge; neither active low nor shared.
            assert_eq!(device.interrupts, [(slot.gsi, 0b0011)]);
        }
    }
}

#[test]
fn com1_and_pvpanic_are_where_the_board_has_them() {
    let found = devices(&tables(1, 0));
    assert_eq!(found.len(), 2);
    let (com1, pvpanic) = (&found[0], &found[1]);
    assert_eq!((com1.hid.as_str(), com1.status), ("PNP0501", 0xf));
    assert_eq!(
        (&com1.ports[..], &com1.interrupts[..]),
        (&[(0x3f8, 0x3f8, 8)][..], &[(4, 0b0011)][..])
    );
    assert_eq!((pvpanic.hid.as_str(), pvpanic.status), ("QEMU0001", 0xf));
    assert_eq!(pvpanic.ports, [(0x505, 0x505, 1)]);
}
