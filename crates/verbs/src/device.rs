//! Which devices there are. Does not own: what they can do, which only an open one says.

use sideway::ibverbs::device::{self, DeviceInfo as _, DeviceList, GetDeviceListErrorKind};

use crate::{Unavailable, VerbsError, unavailable};

/// A device that can be opened.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DeviceInfo {
    /// What [`crate::Context::open`] takes, such as `mlx5_0`.
    pub name: String,
}

/// All devices, in the order of libibverbs; at least one.
///
/// # Errors
/// Says what is missing if there is none.
pub fn devices() -> Result<Vec<DeviceInfo>, Unavailable> {
    Ok(list()?.iter().map(|device| DeviceInfo { name: device.name() }).collect())
}

fn list() -> Result<DeviceList, Unavailable> {
    let list = DeviceList::new().map_err(|error| match error.0 {
        GetDeviceListErrorKind::Ibverbs(source) => Unavailable::from_answer(&source),
        _ => Unavailable::List { errno: 0 },
    })?;
    if list.is_empty() {
        return Err(Unavailable::from_kernel(&unavailable::kernel_devices(), unavailable::has_nodes()));
    }
    Ok(list)
}

/// Opens a device, for [`crate::Context::open`].
///
/// # Errors
/// EACCES or EPERM without the right to, ENODEV if it has gone.
pub(crate) fn open(
    name: &str,
) -> Result<std::sync::Arc<sideway::ibverbs::device_context::DeviceContext>, VerbsError> {
    let list = list()?;
    let Some(device) = list.iter().find(|device| device.name() == name) else {
        let present = list.iter().map(|device| device.name()).collect();
        return Err(VerbsError::NoSuchDevice { name: name.to_owned(), present });
    };
    device.open().map_err(|error| {
        let source = match error.0 {
            device::OpenDeviceErrorKind::Ibverbs(source) => source,
            other => std::io::Error::other(other),
        };
        VerbsError::verb("ibv_open_device", name, source)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_machine_has_devices_or_says_what_is_missing() {
        match devices() {
            Ok(devices) => assert!(!devices.is_empty(), "an empty list is an error"),
            Err(missing) => {
                assert!(!missing.hint().is_empty(), "{missing}");
                let error = open("rxe0").expect_err("there is none");
                assert_eq!(error.hint(), Some(missing.hint()), "{error}");
            }
        }
    }
}
