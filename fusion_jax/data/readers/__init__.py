"""Image files: one function a kind, one error for whatever is wrong with a file, canonical order for every volume."""

from fusion_jax.data.readers.dicom import peek_dicom, read_dicom
from fusion_jax.data.readers.dicom_seg import peek_dicom_seg, read_dicom_seg, segment_names
from fusion_jax.data.readers.dicom_series import peek_dicom_series, read_dicom_series
from fusion_jax.data.readers.header import MAX_VOXELS, ImageHeader
from fusion_jax.data.readers.itk import peek_metaimage, peek_nrrd, read_metaimage, read_nrrd
from fusion_jax.data.readers.nifti import peek_nifti, read_nifti
from fusion_jax.data.readers.numpy_files import peek_npy, peek_npz, read_npy, read_npz
from fusion_jax.data.readers.personal import personal_tags
from fusion_jax.data.readers.raster import peek_jpeg, peek_png, read_jpeg, read_png
from fusion_jax.data.readers.registry import READERS, Reader, peek_image, read_image, reader_name
from fusion_jax.data.readers.rtstruct import peek_rtstruct, read_rtstruct, region_names
from fusion_jax.data.readers.suv import suv_bodyweight, suv_bodyweight_factor
from fusion_jax.data.readers.tiff import peek_tiff, read_tiff

__all__ = [
    "MAX_VOXELS",
    "READERS",
    "ImageHeader",
    "Reader",
    "peek_dicom",
    "peek_dicom_seg",
    "peek_dicom_series",
    "peek_image",
    "peek_jpeg",
    "peek_metaimage",
    "peek_nifti",
    "peek_npy",
    "peek_npz",
    "peek_nrrd",
    "peek_png",
    "peek_rtstruct",
    "peek_tiff",
    "personal_tags",
    "read_dicom",
    "read_dicom_seg",
    "read_dicom_series",
    "read_image",
    "read_jpeg",
    "read_metaimage",
    "read_nifti",
    "read_npy",
    "read_npz",
    "read_nrrd",
    "read_png",
    "read_rtstruct",
    "read_tiff",
    "reader_name",
    "region_names",
    "segment_names",
    "suv_bodyweight",
    "suv_bodyweight_factor",
]
