//! Plain counters with names: what happened, and what a guest did wrong.

/// Defines a struct of public `u64` counters and `named`, which lists them for metrics.
macro_rules! counters {
    (
        $(#[$meta:meta])*
        pub struct $name:ident {
            $( $(#[$field_meta:meta])* $field:ident, )*
        }
    ) => {
        $(#[$meta])*
        #[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
        pub struct $name {
            $( $(#[$field_meta])* pub $field: u64, )*
        }

        impl $name {
            /// Every counter by name, in declaration order.
            pub fn named(&self) -> impl Iterator<Item = (&'static str, u64)> + use<> {
                [$( (stringify!($field), self.$field), )*].into_iter()
            }
        }
    };
}
pub(crate) use counters;

/// Counts one more; `true` when the event is worth a line in the log.
///
/// The 1st, 2nd, 4th, 8th … are: a guest that repeats a fault for ever writes
/// at most 64 lines, and no clock is needed.
pub(crate) fn count(counter: &mut u64) -> bool {
    *counter = counter.saturating_add(1);
    counter.is_power_of_two()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_events_are_logged_ever_more_rarely() {
        let mut counter = 0;
        let logged = (0..1000).filter(|_| count(&mut counter)).count();
        assert_eq!(counter, 1000);
        assert_eq!(logged, 10); // 1, 2, 4, ... 512
    }

    #[test]
    fn a_counter_at_its_end_stays_there() {
        let mut counter = u64::MAX;
        assert!(!count(&mut counter));
        assert_eq!(counter, u64::MAX);
    }
}
