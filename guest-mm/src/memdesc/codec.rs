//! Words from and to bits.

use super::body::{
    Block, BlockKind, Buddy, Descriptor, DescriptorKind, DriverId, Memdesc, MigrateType, Offline,
    Pcp, Tail, Transit,
};
use super::kind::{Hold, Kind, State, Tag};
use super::order::Order;
use super::word::{Link, TAG, UnknownWord, Word, buddy, misc, pointer};

impl Memdesc {
    /// The word that says this.
    pub const fn encode(self) -> Word {
        match self {
            Self::Block(block) => block.encode(),
            Self::Offline(offline) => offline.encode(),
            Self::Pcp(pcp) => pcp.encode(),
            Self::Tail(tail) => tail.encode(),
            Self::Buddy(buddy) => buddy.encode(),
            Self::Descriptor(descriptor) => descriptor.encode(),
            Self::Transit(transit) => transit.encode(),
        }
    }
}

const fn misc_bits(kind: Kind, order: Order) -> u64 {
    misc::SUBTYPE.put(kind as u64) | misc::ORDER.put(order.get() as u64)
}

// One encoder per type, so that callers who know the type pay no match.

impl Block {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        let user_mappable = misc::USER_MAPPABLE.put(self.user_mappable as u64);
        Word::from_bits(misc_bits(self.kind.kind(), self.order) | user_mappable)
    }
}

impl Offline {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        let (movable, isolated, parked) = match self.hold {
            Hold::Held => (0, 0, 0),
            Hold::Parked => (0, 0, 1),
            Hold::Movable => (1, 0, 0),
            Hold::Isolated | Hold::Doomed => (1, 1, 0),
        };
        Word::from_bits(
            misc_bits(Kind::Offline, self.order)
                | misc::MOVABLE.put(movable)
                | misc::ISOLATED.put(isolated)
                | misc::PARKED.put(parked)
                | misc::SKIPPABLE.put(self.skippable as u64)
                | misc::DRIVER.put(self.driver.get() as u64),
        )
    }
}

impl Pcp {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        Word::from_bits(
            misc_bits(Kind::Pcp, self.order)
                | misc::PCP_MIGRATETYPE.put(self.migratetype as u64)
                | misc::PCP_CPU.put(self.cpu as u64)
                | misc::REPORTED.put(self.reported as u64)
                | misc::PCP_NEXT.put(self.next.bits()),
        )
    }
}

impl Tail {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        let distance = misc::TAIL_DISTANCE.put(self.distance as u64);
        Word::from_bits(misc_bits(Kind::Tail, self.order) | distance)
    }
}

impl Buddy {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        Word::from_bits(
            TAG.put(Tag::Buddy as u64)
                | buddy::ORDER.put(self.order.get() as u64)
                | buddy::MIGRATETYPE.put(self.migratetype as u64)
                | buddy::REPORTED.put(self.reported as u64)
                | buddy::PREV.put(self.prev.bits())
                | buddy::NEXT.put(self.next.bits()),
        )
    }
}

impl Descriptor {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        let (movable, isolated) = match self.hold {
            Hold::Held | Hold::Parked => (0, 0),
            Hold::Movable => (1, 0),
            Hold::Isolated => (1, 1),
            Hold::Doomed => (0, 1),
        };
        Word::from_bits(
            TAG.put(self.kind.kind().tag() as u64)
                | (self.address() & pointer::ADDRESS.mask())
                | pointer::MOVABLE.put(movable)
                | pointer::ISOLATED.put(isolated),
        )
    }
}

impl Transit {
    /// The word that says this.
    #[inline]
    pub const fn encode(self) -> Word {
        Word::from_bits(TAG.put(Tag::Transit as u64) | misc::ORDER.put(self.order.get() as u64))
    }
}

impl Word {
    /// What the word says.
    ///
    /// # Errors
    /// Anything that [`Memdesc::encode`] never produces: an unused tag or
    /// subtype, a value out of its range, or a stray bit.
    pub const fn decode(self) -> Result<Memdesc, UnknownWord> {
        let Some(memdesc) = self.decode_loosely() else { return Err(UnknownWord(self)) };
        // Strict by construction: whatever decoding ignored shows up here.
        if memdesc.encode().bits() == self.bits() { Ok(memdesc) } else { Err(UnknownWord(self)) }
    }

    /// The free block that starts here, if the word is a well-formed Buddy word.
    #[inline]
    pub const fn as_buddy(self) -> Option<Buddy> {
        // The fields of a Buddy word leave no bit over: nothing stray to look for.
        if matches!(self.tag(), Tag::Buddy) { buddy_body(self.bits()) } else { None }
    }

    /// The block of a per-CPU list that starts here, if the word is well-formed.
    #[inline]
    pub const fn as_pcp(self) -> Option<Pcp> {
        const HEAD: u64 = TAG.mask() | misc::SUBTYPE.mask();
        if self.bits() & HEAD != misc::SUBTYPE.put(Kind::Pcp as u64) {
            return None;
        }
        match pcp_body(self.bits()) {
            Some(pcp) if pcp.encode().bits() == self.bits() => Some(pcp),
            _ => None,
        }
    }

    const fn decode_loosely(self) -> Option<Memdesc> {
        let bits = self.bits();
        let Ok(State { kind, hold }) = self.state() else { return None };
        if matches!(kind, Kind::Buddy) {
            return match buddy_body(bits) {
                Some(buddy) => Some(Memdesc::Buddy(buddy)),
                None => None,
            };
        }
        if let Some(kind) = DescriptorKind::from_kind(kind) {
            let address = canonical(bits & pointer::ADDRESS.mask());
            return match Descriptor::new(kind, address) {
                Some(found) => Some(Memdesc::Descriptor(found.with_hold(hold))),
                None => None,
            };
        }
        misc_body(kind, hold, bits)
    }
}

#[expect(clippy::cast_possible_truncation, reason = "fields of at most six bits")]
const fn order_in(field: u64) -> Option<Order> {
    Order::new(field as u8)
}

#[inline]
const fn buddy_body(bits: u64) -> Option<Buddy> {
    let Some(order) = order_in(buddy::ORDER.get(bits)) else { return None };
    #[expect(clippy::cast_possible_truncation, reason = "three bits")]
    let Some(migratetype) = MigrateType::from_index(buddy::MIGRATETYPE.get(bits) as usize) else {
        return None;
    };
    Some(Buddy {
        order,
        migratetype,
        reported: buddy::REPORTED.is_set(bits),
        prev: Link::from_field(buddy::PREV.get(bits)),
        next: Link::from_field(buddy::NEXT.get(bits)),
    })
}

const fn misc_body(kind: Kind, hold: Hold, bits: u64) -> Option<Memdesc> {
    let Some(order) = order_in(misc::ORDER.get(bits)) else { return None };
    if let Some(kind) = BlockKind::from_kind(kind) {
        let user_mappable = misc::USER_MAPPABLE.is_set(bits);
        return Some(Memdesc::Block(Block { kind, order, user_mappable }));
    }
    if matches!(kind, Kind::Pcp) {
        return match pcp_body(bits) {
            Some(pcp) => Some(Memdesc::Pcp(pcp)),
            None => None,
        };
    }
    if matches!(kind, Kind::Transit) {
        return Some(Memdesc::Transit(Transit { order }));
    }
    if matches!(kind, Kind::Tail) {
        #[expect(clippy::cast_possible_truncation, reason = "thirty-two bits")]
        let distance = misc::TAIL_DISTANCE.get(bits) as u32;
        return Some(Memdesc::Tail(Tail { order, distance }));
    }
    #[expect(clippy::cast_possible_truncation, reason = "four bits")]
    let driver = DriverId::from_field(misc::DRIVER.get(bits) as u8);
    let skippable = misc::SKIPPABLE.is_set(bits);
    Some(Memdesc::Offline(Offline { order, driver, hold, skippable }))
}

#[inline]
const fn pcp_body(bits: u64) -> Option<Pcp> {
    let Some(order) = order_in(misc::ORDER.get(bits)) else { return None };
    #[expect(clippy::cast_possible_truncation, reason = "three bits")]
    let Some(migratetype) = MigrateType::from_index(misc::PCP_MIGRATETYPE.get(bits) as usize)
    else {
        return None;
    };
    #[expect(clippy::cast_possible_truncation, reason = "two bits")]
    let cpu = misc::PCP_CPU.get(bits) as u8;
    Some(Pcp {
        order,
        migratetype,
        cpu,
        reported: misc::REPORTED.is_set(bits),
        next: Link::from_field(misc::PCP_NEXT.get(bits)),
    })
}

/// Repeats bit 47 in bits 48–63.
#[expect(
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    reason = "sign extension is the point"
)]
pub(super) const fn canonical(address: u64) -> u64 {
    (((address << 16) as i64) >> 16) as u64
}
