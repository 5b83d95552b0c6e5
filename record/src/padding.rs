//! Plaintexts are padded to size classes before they are sealed, so that their length says little (RFC 8188 has the same aim).

use zeroize::Zeroizing;

/// Length, plaintext, zeros up to the smallest of these classes that it fits in; `None` if it fits in none. Classes ascend.
pub(crate) fn padded(plaintext: &[u8], classes: &[usize]) -> Option<Zeroizing<Vec<u8>>> {
    let class = *classes.iter().find(|class| plaintext.len() + 4 <= **class)?;
    let length = u32::try_from(plaintext.len()).ok()?;
    let mut bytes = Zeroizing::new(Vec::with_capacity(class));
    bytes.extend_from_slice(&length.to_be_bytes());
    bytes.extend_from_slice(plaintext);
    bytes.resize(class, 0);
    Some(bytes)
}

/// The plaintext, and what is behind it; `None` if it says that it is longer than it is.
pub(crate) fn unpadded(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let (length, rest) = bytes.split_first_chunk::<4>()?;
    rest.split_at_checked(usize::try_from(u32::from_be_bytes(*length)).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_padded_is_as_long_as_its_class_and_comes_back() {
        for (length, class) in [(0, 8), (4, 8), (5, 16), (12, 16)] {
            let plain = vec![7; length];
            let bytes = padded(&plain, &[8, 16]).expect("fits");
            assert_eq!(bytes.len(), class);
            let (back, rest) = unpadded(&bytes).expect("whole");
            assert_eq!(back, plain);
            assert!(rest.iter().all(|byte| *byte == 0));
        }
        assert!(padded(&[7; 13], &[8, 16]).is_none());
    }

    #[test]
    fn a_length_that_is_not_there_is_refused() {
        assert!(unpadded(&[0, 0, 0]).is_none());
        assert!(unpadded(&[0, 0, 0, 2, 7]).is_none());
        assert!(unpadded(&[255; 8]).is_none());
    }
}
