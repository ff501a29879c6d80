//! What a block must hold: a function of seed, block and version, so that nothing needs to be kept
//! but a version a block.
#![deny(clippy::disallowed_methods, clippy::disallowed_types)]

/// Bytes of a block.
pub(super) const BLOCK_BYTES: usize = 4096;

/// Fills a block. Version 0 is a block never written: zeroes.
pub(super) fn fill(block: &mut [u8], seed: u64, number: u64, version: u32) {
    if version == 0 {
        block.fill(0);
        return;
    }
    let mut state = mix(seed ^ mix(number) ^ mix(u64::from(version) << 32));
    for word in block.chunks_exact_mut(8) {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        word.copy_from_slice(&mix(state).to_le_bytes());
    }
}

/// A bijection of 64 bits that leaves no pattern (splitmix64's finalizer, Steele et al. 2014).
pub(super) fn mix(mut x: u64) -> u64 {
    x = (x ^ (x >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    x = (x ^ (x >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    x ^ (x >> 31)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn blocks_differ_by_seed_number_and_version() {
        let block = |seed, number, version| {
            let mut data = [0; BLOCK_BYTES];
            fill(&mut data, seed, number, version);
            data
        };
        let one = block(1, 2, 3);
        assert_eq!(one, block(1, 2, 3));
        for other in [block(2, 2, 3), block(1, 3, 3), block(1, 2, 4), [0; BLOCK_BYTES]] {
            assert_ne!(one, other);
        }
        assert_eq!(block(1, 2, 0), [0; BLOCK_BYTES]);
    }
}
