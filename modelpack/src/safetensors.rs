//! What the header of a safetensors file says of its tensors.
//!
//! Source: the `safetensors` crate, which checks offsets, shapes and types against one another. Owns: reading a
//! header that came without its data, such as by a range request. Does not own: the tensors' bytes.

use std::collections::BTreeMap;

use safetensors::tensor::{Metadata, TensorInfo};

/// Most bytes of a header, as the `safetensors` crate has it.
pub const HEADER_BYTES_MAX: u64 = 100_000_000;

/// Bytes before the header: its length as a little-endian number.
const LENGTH_BYTES: u64 = 8;

/// A header that cannot be read, or that does not describe its file.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum HeaderError {
    /// The file's first eight bytes give a length beyond the limit. Most often it is no safetensors file at all.
    #[error("the safetensors header is said to have {0} bytes, over the limit of {HEADER_BYTES_MAX}")]
    TooLong(u64),
    /// It is not JSON, or its tensors overlap, leave gaps or do not fit their shapes.
    #[error("the safetensors header is malformed")]
    Malformed(#[source] serde_json::Error),
    /// The tensors do not end where the file ends.
    #[error("the safetensors header describes {described} bytes, but the file has {file_bytes}")]
    Length {
        /// How long the file would have to be.
        described: u128,
        /// How long it is.
        file_bytes: u64,
    },
}

impl HeaderError {
    /// What the user may do about it.
    pub fn hint(&self) -> Option<String> {
        Some("the file is damaged, incomplete or no safetensors file: get it again from where it came".into())
    }
}

/// A model file's tensors, summed up.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// How many tensors.
    pub tensors: u64,
    /// How many bytes of each type, by the names of the safetensors format, such as `BF16`.
    pub dtypes: BTreeMap<String, u64>,
    /// How many numbers all tensors have together.
    pub parameters: u64,
}

/// One tensor of a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Tensor {
    /// Its name.
    pub name: String,
    /// Its type, by the name that the safetensors format has for it.
    pub dtype: String,
    /// Its dimensions; none for a single number.
    pub shape: Vec<u64>,
    /// Where its bytes begin in the file.
    pub offset: u64,
    /// Its size in bytes.
    pub bytes: u64,
}

/// How long the header is that follows a file's first eight bytes.
pub fn header_bytes(first_eight: [u8; 8]) -> Result<u64, HeaderError> {
    let stated = u64::from_le_bytes(first_eight);
    if stated > HEADER_BYTES_MAX { Err(HeaderError::TooLong(stated)) } else { Ok(stated) }
}

/// Reads the header of a file of `file_bytes` bytes: the JSON, without the eight bytes before it. Tensors come in the
/// order in which they lie in the file.
pub fn tensors(header: &[u8], file_bytes: u64) -> Result<Vec<Tensor>, HeaderError> {
    let header_bytes = header.len() as u64;
    if header_bytes > HEADER_BYTES_MAX {
        return Err(HeaderError::TooLong(header_bytes));
    }
    let metadata: Metadata = serde_json::from_slice(header).map_err(HeaderError::Malformed)?;
    let data = LENGTH_BYTES + header_bytes;
    let described = u128::from(data) + metadata.data_len() as u128;
    if described != u128::from(file_bytes) {
        return Err(HeaderError::Length { described, file_bytes });
    }
    // The crate has checked that shapes and offsets neither overflow nor contradict one another.
    let tensor = |(name, info): (String, &TensorInfo)| Tensor {
        name,
        dtype: info.dtype.to_string(),
        shape: info.shape.iter().map(|dimension| *dimension as u64).collect(),
        offset: data + info.data_offsets.0 as u64,
        bytes: (info.data_offsets.1 - info.data_offsets.0) as u64,
    };
    let mut tensors: Vec<_> = metadata.tensors().into_iter().map(tensor).collect();
    tensors.sort_by(|a, b| (a.offset, &a.name).cmp(&(b.offset, &b.name)));
    Ok(tensors)
}

/// Reads the header of a file of `file_bytes` bytes: the JSON, without the eight bytes before it.
pub fn summary(header: &[u8], file_bytes: u64) -> Result<Summary, HeaderError> {
    Ok(Summary::of(&tensors(header, file_bytes)?))
}

impl Summary {
    /// Sums up.
    pub fn of(tensors: &[Tensor]) -> Self {
        let mut summary = Self::default();
        for tensor in tensors {
            summary.tensors += 1;
            *summary.dtypes.entry(tensor.dtype.clone()).or_default() += tensor.bytes;
            // Their product was checked with the offsets.
            let numbers =
                tensor.shape.iter().fold(1_u64, |product, dimension| product.saturating_mul(*dimension));
            summary.parameters = summary.parameters.saturating_add(numbers);
        }
        summary
    }
}
