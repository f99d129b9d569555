//! Tiny kernels for tests of the machine around a guest: an ELF file made of a few instructions.
//!
//! The code starts in protected mode without paging if there is a PVH note, else in long mode, and ends in a
//! loop that halts; most instructions here do the same in both. Sources: Intel SDM vol. 2 for the encodings, System V ABI
//! for ELF, Xen's "x86/HVM direct boot ABI" for the note.

use abi::platform::{
    I8042_COMMAND_PORT, I8042_RESET, PM1A_CONTROL_PORT, PM1A_SLEEP_S5, PVPANIC_PANICKED,
    PVPANIC_PORT, SERIAL_PORT,
};

/// Where the code is loaded and entered.
pub const CODE_GPA: u64 = 0x10_0000;
/// A dword that the file does not load: reads zero at boot.
pub const SCRATCH_GPA: u32 = 0x18_0000;

/// Bytes before the code in the file: headers and note.
const CODE_OFFSET: u64 = 0x1000;
const EHDR_BYTES: u16 = 64;
const PHDR_BYTES: u16 = 56;
const NOTE_OFFSET: u64 = 0x200;

/// Instructions, put together one by one.
#[derive(Debug, Clone, Default)]
pub struct Payload {
    code: Vec<u8>,
}

impl Payload {
    /// No instructions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Raw machine code.
    pub fn raw(mut self, code: &[u8]) -> Self {
        self.code.extend_from_slice(code);
        self
    }

    fn mov_dx(self, port: u16) -> Self {
        let [low, high] = port.to_le_bytes();
        self.raw(&[0x66, 0xba, low, high])
    }

    /// `mov al, value; out dx, al` to `port`.
    pub fn out8(self, port: u16, value: u8) -> Self {
        self.mov_dx(port).raw(&[0xb0, value, 0xee])
    }

    /// `mov ax, value; out dx, ax` to `port`.
    pub fn out16(self, port: u16, value: u16) -> Self {
        let [low, high] = value.to_le_bytes();
        self.mov_dx(port).raw(&[0x66, 0xb8, low, high, 0x66, 0xef])
    }

    /// Prints `text` on the serial console.
    pub fn print(self, text: &str) -> Self {
        text.bytes().fold(self, |payload, byte| payload.out8(SERIAL_PORT, byte))
    }

    /// Prints the four bytes of EAX: `out dx, eax`.
    pub fn print_eax(self) -> Self {
        self.mov_dx(SERIAL_PORT).raw(&[0xef])
    }

    /// `in eax, dx` from `port`.
    pub fn in32(self, port: u16) -> Self {
        self.mov_dx(port).raw(&[0xed])
    }

    /// `mov eax, [gpa]`.
    pub fn load32(self, gpa: u32) -> Self {
        self.raw(&[0xa1]).raw(&gpa.to_le_bytes())
    }

    /// `mov eax, value; mov [gpa], eax`.
    pub fn store32(self, gpa: u32, value: u32) -> Self {
        self.raw(&[0xb8]).raw(&value.to_le_bytes()).raw(&[0xa3]).raw(&gpa.to_le_bytes())
    }

    /// `mov al, [gpa]`, then `mov [gpa], al`: one byte each way.
    pub fn byte_accesses(self, gpa: u32) -> Self {
        let address = gpa.to_le_bytes();
        self.raw(&[0xa0]).raw(&address).raw(&[0xa2]).raw(&address)
    }

    /// `mov ax, [gpa]`, then `mov [gpa], ax`: two bytes each way.
    pub fn word_accesses(self, gpa: u32) -> Self {
        let address = gpa.to_le_bytes();
        self.raw(&[0x66, 0xa1]).raw(&address).raw(&[0x66, 0xa3]).raw(&address)
    }

    /// Waits until a bit of `mask` is set in the 16-bit register at `port`; `mask` within its upper byte.
    pub fn wait_port16(self, port: u16, mask: u16) -> Self {
        let [_, high] = mask.to_le_bytes();
        // again: in ax, dx; test ah, high; jz again
        self.mov_dx(port).raw(&[0x66, 0xed, 0xf6, 0xc4, high, 0x74, 0xf9])
    }

    /// Waits until the dword at `gpa` is not zero: `again: mov eax, [gpa]; test eax, eax; jz again`.
    pub fn wait_memory32(self, gpa: u32) -> Self {
        self.load32(gpa).raw(&[0x85, 0xc0, 0x74, 0xf7])
    }

    /// Resets the machine.
    pub fn reset(self) -> Self {
        self.out8(I8042_COMMAND_PORT, I8042_RESET)
    }

    /// Reports a guest panic.
    pub fn panic(self) -> Self {
        self.out8(PVPANIC_PORT, PVPANIC_PANICKED)
    }

    /// Powers the machine off.
    pub fn power_off(self) -> Self {
        self.out16(PM1A_CONTROL_PORT, PM1A_SLEEP_S5)
    }

    /// `ud2` without an interrupt table: a triple fault.
    pub fn triple_fault(self) -> Self {
        self.raw(&[0x0f, 0x0b])
    }

    /// `jmp .`
    pub fn spin(self) -> Self {
        self.raw(&[0xeb, 0xfe])
    }

    /// Copies serial input to serial output for ever; a `q` goes on to the next instruction.
    pub fn echo_until_q(self) -> Self {
        self.raw(&[
            0x66, 0xba, 0xfd, 0x03, // again: mov dx, 0x3fd (line status)
            0xec, //                          in al, dx
            0xa8, 0x01, //                    test al, 1 (data ready)
            0x74, 0xf7, //                    jz again
            0x66, 0xba, 0xf8, 0x03, //        mov dx, 0x3f8
            0xec, //                          in al, dx
            0xee, //                          out dx, al
            0x3c, b'q', //                    cmp al, 'q'
            0x75, 0xed, //                    jne again
        ])
    }

    /// `mov eax, [ebx + offset]`, or of RBX in long mode: PVH's start info and what it leads to.
    pub fn load_start_info(self, offset: u32) -> Self {
        self.raw(&[0x8b, 0x83]).raw(&offset.to_le_bytes())
    }

    /// `mov ebx, [ebx + offset]`.
    pub fn follow_start_info(self, offset: u32) -> Self {
        self.raw(&[0x8b, 0x9b]).raw(&offset.to_le_bytes())
    }

    /// `mov eax, [rsi + offset]`: the zero page of Linux's boot protocol and what it leads to.
    pub fn load_zero_page(self, offset: u32) -> Self {
        self.raw(&[0x8b, 0x86]).raw(&offset.to_le_bytes())
    }

    /// `mov esi, [rsi + offset]`.
    pub fn follow_zero_page(self, offset: u32) -> Self {
        self.raw(&[0x8b, 0xb6]).raw(&offset.to_le_bytes())
    }

    /// Prints `L` in long mode and `K` in protected mode.
    pub fn print_mode(self) -> Self {
        // xor eax, eax; mov al, 'K'; then 48 ff c0: `inc rax`, or `dec eax; inc eax`.
        self.raw(&[0x31, 0xc0, 0xb0, b'K', 0x48, 0xff, 0xc0]).mov_dx(SERIAL_PORT).raw(&[0xee])
    }

    /// The machine code, then `hlt` for ever.
    pub fn code(&self) -> Vec<u8> {
        [&self.code[..], &[0xf4, 0xeb, 0xfd]].concat()
    }

    /// The ELF file with a PVH note.
    pub fn elf(&self) -> Vec<u8> {
        self.elf_with(&note(b"Xen\0", 18, &CODE_GPA.to_le_bytes()))
    }

    /// The ELF file with a note that is none of a loader's: to be entered in long mode.
    pub fn elf_without_pvh(&self) -> Vec<u8> {
        self.elf_with(&note(b"GNU\0", 3, &[0; 8]))
    }

    /// The ELF file with a note of Linux's build.
    pub fn elf_like_linux(&self) -> Vec<u8> {
        self.elf_with(&note(b"Linux\0", 0x101, &[0; 4]))
    }

    fn elf_with(&self, note: &[u8]) -> Vec<u8> {
        let code = self.code();
        let bytes = code.len() as u64;
        let mut file = header();
        file.extend(program_header(1, CODE_OFFSET, bytes));
        file.extend(program_header(4, NOTE_OFFSET, note.len() as u64));
        file.resize(to_usize(NOTE_OFFSET), 0);
        file.extend(note);
        file.resize(to_usize(CODE_OFFSET), 0);
        file.extend(code);
        file
    }
}

fn to_usize(offset: u64) -> usize {
    usize::try_from(offset).expect("a small constant")
}

fn header() -> Vec<u8> {
    let mut header = vec![0x7f, b'E', b'L', b'F', 2, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    header.extend(2u16.to_le_bytes()); // ET_EXEC
    header.extend(62u16.to_le_bytes()); // EM_X86_64
    header.extend(1u32.to_le_bytes());
    header.extend(CODE_GPA.to_le_bytes()); // e_entry
    header.extend(u64::from(EHDR_BYTES).to_le_bytes()); // e_phoff
    header.extend([0; 8 + 4]); // e_shoff, e_flags
    for half in [EHDR_BYTES, PHDR_BYTES, 2, 0, 0, 0] {
        header.extend(half.to_le_bytes());
    }
    header
}

fn program_header(kind: u32, offset: u64, bytes: u64) -> Vec<u8> {
    let mut header = Vec::from(kind.to_le_bytes());
    header.extend(7u32.to_le_bytes());
    for field in [offset, CODE_GPA, CODE_GPA, bytes, bytes, 4] {
        header.extend(field.to_le_bytes());
    }
    header
}

/// A note; `desc` is a multiple of 4 B.
fn note(name: &[u8], kind: u32, desc: &[u8]) -> Vec<u8> {
    let sizes = [name.len(), desc.len()].map(|len| u32::try_from(len).expect("short"));
    let head = [sizes[0], sizes[1], kind].map(u32::to_le_bytes).concat();
    let padding = vec![0; name.len().next_multiple_of(4) - name.len()];
    [&head, name, &padding, desc].concat()
}
