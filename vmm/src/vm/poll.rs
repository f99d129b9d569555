//! Waiting for files: a thin layer over epoll with typed tokens.
//!
//! Plain epoll, not a subscriber framework: each loop has one owner and one
//! `match` over its tokens, so nothing needs shared ownership or a lock.

use std::io;
use std::os::fd::RawFd;
use std::time::{Duration, Instant};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

/// Events taken per wait.
const BATCH: usize = 16;

/// An epoll instance whose tokens are a `T`.
pub(crate) struct Poller<T> {
    epoll: Epoll,
    tokens: Vec<T>,
}

impl<T: Copy + PartialEq> Poller<T> {
    /// Watches nothing yet.
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self { epoll: Epoll::new()?, tokens: Vec::new() })
    }

    /// Watches `fd` for input.
    pub(crate) fn watch(&mut self, fd: RawFd, token: T) -> io::Result<()> {
        self.add(fd, token, EventSet::IN)
    }

    /// Watches `fd` for room to write.
    pub(crate) fn watch_writable(&mut self, fd: RawFd, token: T) -> io::Result<()> {
        self.add(fd, token, EventSet::OUT)
    }

    fn add(&mut self, fd: RawFd, token: T, events: EventSet) -> io::Result<()> {
        let index = match self.tokens.iter().position(|known| *known == token) {
            Some(index) => index,
            None => {
                self.tokens.push(token);
                self.tokens.len() - 1
            }
        };
        self.epoll.ctl(ControlOperation::Add, fd, EpollEvent::new(events, index as u64))
    }

    /// Stops watching `fd`.
    pub(crate) fn forget(&self, fd: RawFd) -> io::Result<()> {
        self.epoll.ctl(ControlOperation::Delete, fd, EpollEvent::default())
    }

    /// Waits until something happens or `deadline` passes; the tokens of what has happened.
    pub(crate) fn wait(&self, deadline: Option<Instant>) -> io::Result<Vec<T>> {
        let mut events = [EpollEvent::default(); BATCH];
        let count = match self.epoll.wait(timeout_ms(deadline), &mut events) {
            Ok(count) => count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        let token = |event: &EpollEvent| {
            usize::try_from(event.data()).ok().and_then(|index| self.tokens.get(index).copied())
        };
        Ok(events.iter().take(count).filter_map(token).collect())
    }
}

/// Milliseconds for epoll, rounded up so that the deadline has passed when it returns; -1: for ever.
fn timeout_ms(deadline: Option<Instant>) -> i32 {
    let Some(deadline) = deadline else { return -1 };
    let left = deadline.saturating_duration_since(Instant::now());
    let ms = left.saturating_add(Duration::from_nanos(999_999)).as_millis();
    i32::try_from(ms).unwrap_or(i32::MAX)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd;

    use vmm_sys_util::eventfd::{EFD_CLOEXEC, EventFd};

    use super::*;

    #[test]
    fn a_written_eventfd_is_reported_by_its_token_and_a_forgotten_one_is_not() {
        let mut poller = Poller::new().expect("epoll");
        let (one, two) = (EventFd::new(EFD_CLOEXEC), EventFd::new(EFD_CLOEXEC));
        let (one, two) = (one.expect("eventfd"), two.expect("eventfd"));
        poller.watch(one.as_raw_fd(), 1).expect("watch");
        poller.watch(two.as_raw_fd(), 2).expect("watch");
        two.write(1).expect("write");
        assert_eq!(poller.wait(None).expect("wait"), [2]);
        poller.forget(two.as_raw_fd()).expect("forget");
        assert_eq!(poller.wait(Some(Instant::now())).expect("wait"), Vec::<i32>::new());
    }

    #[test]
    fn timeouts_are_rounded_up() {
        assert_eq!(timeout_ms(None), -1);
        assert_eq!(timeout_ms(Some(Instant::now())), 0);
        let soon = Instant::now() + Duration::from_micros(1_500);
        assert!((1..=2).contains(&timeout_ms(Some(soon))));
        let far = Instant::now() + Duration::from_secs(u32::MAX.into());
        assert_eq!(timeout_ms(Some(far)), i32::MAX);
    }
}
