//! Making a thread leave KVM_RUN.
//!
//! A signal alone is not enough: one that arrives just before KVM_RUN would be
//! handled outside and forgotten. So its handler sets `immediate_exit` in the
//! thread's own `kvm_run`, found through a thread-local pointer.

use std::cell::Cell;
use std::io;
use std::marker::PhantomData;
use std::ptr;
use std::sync::atomic::{Ordering, compiler_fence};

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

/// The signal, which no library of ours uses.
pub(super) fn signal() -> libc::c_int {
    SIGRTMIN()
}

/// Installs the handler for the process.
pub(super) fn install() -> io::Result<()> {
    register_signal_handler(signal(), on_kick)
        .map_err(|error| io::Error::from_raw_os_error(error.errno()))
}

thread_local! {
    /// `immediate_exit` of the vCPU that this thread runs, or null. Needs neither initialisation nor a
    /// destructor, so that the handler may use it.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

extern "C" fn on_kick(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let flag = IMMEDIATE_EXIT.get();
    if !flag.is_null() {
        // SAFETY: not null, so a `Target` of this thread lives, and with it the vCPU whose mapping
        // `flag` points into. The byte has no other writer than this thread and the kernel.
        unsafe { flag.write_volatile(1) };
    }
}

/// The thread's registration as a target of kicks.
pub(super) struct Target {
    flag: *mut u8,
    /// The registration belongs to the thread; a raw pointer alone makes it `!Send` already.
    _thread: PhantomData<*mut u8>,
}

impl Target {
    /// Lets kicks of this thread reach `vcpu`.
    ///
    /// # Safety
    /// `vcpu` outlives the target: the handler and [`Self::clear`] write into its mapping.
    pub(super) unsafe fn register(vcpu: &mut VcpuFd) -> Self {
        let flag = &raw mut vcpu.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.set(flag);
        Self { flag, _thread: PhantomData }
    }

    /// Forgets kicks so far. What the caller checks afterwards, it checks with kicks armed.
    pub(super) fn clear(&self) {
        // SAFETY: `register`'s caller keeps the vCPU, and so its mapping, until `self` is dropped.
        unsafe { self.flag.write_volatile(0) };
        // The handler runs on this thread: only the compiler could move the caller's check up.
        compiler_fence(Ordering::SeqCst);
    }
}

impl Drop for Target {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
