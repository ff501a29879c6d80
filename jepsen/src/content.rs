//! What a register holds: its value, spread over every sector so that a part of another write shows.
//!
//! A sector holds the value, its own number on the device, and bytes that follow from both and the
//! seed. Sectors of zeroes were never written. Anything else is [`FOREIGN`]: torn, misplaced, or of
//! another run.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

use crate::history::{RegisterValue, UNWRITTEN};

/// Bytes of a sector.
pub(crate) const SECTOR: usize = 512;
/// What a read gives for bytes that no write put there.
pub(crate) const FOREIGN: RegisterValue = -1;

/// Where registers are on a device, and what their values look like there.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Layout {
    /// Seed of the run.
    pub(crate) seed: u64,
    /// First sector of register 0.
    pub(crate) base: u64,
    /// Sectors from one register to the next.
    pub(crate) stride: u64,
    /// Sectors of a register.
    pub(crate) sectors: u64,
}

impl Layout {
    /// Byte offset of a register.
    pub(crate) fn offset(&self, register: u64) -> u64 {
        (self.base + register * self.stride) * SECTOR as u64
    }

    /// Bytes of `span` registers, which lie one after the other where there are several.
    pub(crate) fn bytes(&self, span: u32) -> usize {
        debug_assert!(
            span == 1 || self.stride == self.sectors,
            "registers with gaps go one by one"
        );
        u64::from(span) as usize * self.sectors as usize * SECTOR
    }

    /// What registers that all have `value` look like.
    pub(crate) fn fill(&self, register: u64, span: u32, value: RegisterValue) -> Vec<u8> {
        let mut data = vec![0; self.bytes(span)];
        if value != UNWRITTEN {
            let first = self.base + register * self.stride;
            for (sector, bytes) in (first..).zip(data.chunks_exact_mut(SECTOR)) {
                fill_sector(bytes, self.seed, sector, value);
            }
        }
        data
    }

    /// The value of each register in what was read.
    pub(crate) fn values(&self, register: u64, data: &[u8]) -> Vec<RegisterValue> {
        let first = self.base + register * self.stride;
        let sectors: Vec<_> = (first..)
            .zip(data.chunks_exact(SECTOR))
            .map(|(sector, bytes)| self.sector_value(sector, bytes))
            .collect();
        let registers = sectors.chunks_exact(self.sectors as usize);
        let whole = |sectors: &[RegisterValue]| {
            let same = sectors.iter().all(|value| *value == sectors[0]);
            if same { sectors[0] } else { FOREIGN }
        };
        registers.map(whole).collect()
    }

    fn sector_value(&self, sector: u64, bytes: &[u8]) -> RegisterValue {
        let value = RegisterValue::from_le_bytes(bytes[..8].try_into().expect("8 bytes"));
        let mut want = [0; SECTOR];
        if value != UNWRITTEN {
            fill_sector(&mut want, self.seed, sector, value);
        }
        if bytes == want { value } else { FOREIGN }
    }
}

fn fill_sector(bytes: &mut [u8], seed: u64, sector: u64, value: RegisterValue) {
    let mut state = mix(seed ^ mix(sector) ^ mix(value as u64).rotate_left(32));
    for word in bytes.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mix(state).to_le_bytes());
    }
    bytes[..8].copy_from_slice(&value.to_le_bytes());
    bytes[8..16].copy_from_slice(&sector.to_le_bytes());
}

/// splitmix64's finalizer (Steele et al. 2014).
pub(crate) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    const BLOCKS: Layout = Layout { seed: 7, base: 3, stride: 8, sectors: 8 };

    #[test]
    fn a_register_reads_back_as_it_was_filled() {
        let mut data = BLOCKS.fill(4, 2, 99);
        data.extend(BLOCKS.fill(6, 1, UNWRITTEN));
        assert_eq!(BLOCKS.values(4, &data), [99, 99, UNWRITTEN]);
    }

    #[test]
    fn torn_misplaced_damaged_and_strange_content_is_foreign() {
        let whole = BLOCKS.fill(4, 1, 99);
        let mut torn = whole.clone();
        torn[7 * SECTOR..].copy_from_slice(&BLOCKS.fill(4, 1, 98)[7 * SECTOR..]);
        let mut half = whole.clone();
        half[..SECTOR].fill(0);
        let mut damaged = whole.clone();
        damaged[3000] ^= 1;
        let of_another_run = Layout { seed: 8, ..BLOCKS }.fill(4, 1, 99);
        for data in [torn, half, damaged, BLOCKS.fill(5, 1, 99), of_another_run] {
            assert_eq!(BLOCKS.values(4, &data), [FOREIGN]);
        }
    }
}
