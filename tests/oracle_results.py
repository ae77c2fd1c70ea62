"""Opens a result file with h5py and with xarray (h5netcdf), neither of which knows meshwork, and compares what they see
with what `meshwork results show --json` printed.

    python oracle_results.py r.h5 shown.json        exit code 0, or 1 and one line per difference
"""

import json
import math
import sys

import h5py
import numpy as np
import xarray as xr

differences = []


def expect(what, found, expected):
    numbers = isinstance(found, (float, np.floating)) and isinstance(expected, float)
    both_nan = numbers and np.isnan(found) and math.isnan(expected)
    if not both_nan and not (found == expected):
        differences.append(f"{what}: found {found!r}, expected {expected!r}")


def real(value):
    """A number as our JSON writes it: NaN is null."""
    return math.nan if value is None else float(value)


def check_span(dataset, variable, span, index):
    where = f"{dataset.name}"
    rows = [[real(v) for v in row] for row in span["seconds"]]
    expected = np.array(rows, dtype=np.float64).reshape(dataset.shape)
    expect(f"{where} dtype", dataset.dtype, np.dtype("float64"))
    expect(f"{where} samples by h5py", np.array_equal(dataset[...], expected, equal_nan=True), True)
    expect(f"{where} samples by xarray", np.array_equal(variable.values, expected, equal_nan=True), True)
    expect(f"{where} dimensions by xarray", variable.dims, ("iteration", "rank"))
    expect(f"{where} dimension 0 by h5py", dataset.dims[0].keys(), ["iteration"])
    expect(f"{where} dimension 1 by h5py", dataset.dims[1].keys(), ["rank"])
    expect(f"{where} units", variable.attrs["units"], "s")
    expect(f"{where} span", dataset.attrs["span"], span["name"])
    expect(f"{where} index", int(dataset.attrs["index"]), index)
    expect(f"{where} fill value", bool(np.isnan(dataset.fillvalue)), True)
    if dataset.size:
        expect(f"{where} compression", (dataset.compression, dataset.compression_opts), ("gzip", 4))
        expect(f"{where} shuffle, fletcher32", (dataset.shuffle, dataset.fletcher32), (True, True))
    for key in ("memory_bytes", "flops", "wire_bytes", "logical_bytes", "floor_s"):
        expect(f"{where} {key}", float(dataset.attrs[key]), real(span[key]))
    # What a user would type: the median over iterations of the maximum over ranks.
    if dataset.size:
        longest = variable.max("rank", skipna=True)
        median = float(longest.median("iteration", skipna=True))
        expected_median = real(span["statistics"]["median"])
        close = np.isclose(median, expected_median, rtol=1e-12, atol=0, equal_nan=True)
        expect(f"{where} median ({median} against {expected_median})", bool(close), True)


def check_measurement(file, path, group_name, measurement):
    group = file[group_name]
    for key in ("name", "stop_reason"):
        expect(f"{group_name} {key}", group.attrs[key], measurement[key])
    for key in ("ranks", "samples", "warmups"):
        expect(f"{group_name} {key}", int(group.attrs[key]), measurement[key])
    for moment in ("before", "after"):
        for key, value in measurement[f"state_{moment}"].items():
            found = group.attrs[f"{moment}_{key}"]
            expect(f"{group_name} {moment}_{key}", found, value if isinstance(value, (str, int)) else real(value))
    by_span = {d.attrs["span"]: d for d in group.values() if "span" in d.attrs}
    expect(f"{group_name} spans", set(by_span), {s["name"] for s in measurement["spans"]})
    with xr.open_dataset(path, group=group_name, engine="h5netcdf") as dataset:
        sizes = {"iteration": measurement["samples"], "rank": measurement["ranks"]}
        expect(f"{group_name} sizes", dict(dataset.sizes), sizes)
        for index, span in enumerate(measurement["spans"]):
            found = by_span[span["name"]]
            check_span(found, dataset[found.name.rsplit("/", 1)[1]], span, index)


def check_checks(path, checks):
    with xr.open_dataset(path, group="checks", engine="h5netcdf") as table:
        expect("number of checks", table.sizes["check"], len(checks))
        for index, check in enumerate(checks):
            row = table.isel(check=index)
            for key in ("name", "verdict", "detail"):
                expect(f"check {index} {key}", str(row[key].values), check[key])
            expect(f"check {index} good", bool(row["good"]), check["good"])
            for key in ("error", "bound"):
                expect(f"check {index} {key}", float(row[key]), real(check[key]))


def main(path, shown_path):
    with open(shown_path, encoding="utf-8") as stream:
        shown = json.load(stream)
    run = shown["run"]
    with h5py.File(path, "r") as file:
        for key in ("schema_name", "schema_version", "command", "uuid", "created_utc"):
            expect(f"attribute {key}", file.attrs[key], run[key])
        expect("attribute seed", int(file.attrs["seed"]), run["seed"])
        expect("header", json.loads(file["header"].asstr()[()]), run)
        for key, value in run["options"].items():
            if isinstance(value, str):
                expect(f"option {key}", file["provenance/options"].attrs[key], value)
        expect("hosts", list(file["ranks/host"].asstr()[...]), [row["host"] for row in run["ranks"]])
        parent = file[file.attrs["measurement_group"]]
        names = sorted(parent, key=lambda name: parent[name].attrs["index"])
        expect("number of measurements", len(names), len(shown["measurements"]))
        for name, measurement in zip(names, shown["measurements"]):
            check_measurement(file, path, f"{parent.name}/{name}", measurement)
    check_checks(path, shown["checks"])
    with xr.open_dataset(path, group="ranks", engine="h5netcdf") as ranks:
        expect("rank table", list(ranks["threads"].values), [row["threads"] for row in run["ranks"]])
    with xr.open_dataset(path, engine="h5netcdf") as root:
        expect("root by xarray", root.attrs["uuid"], run["uuid"])
    for difference in differences:
        print(difference)
    return 1 if differences else 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
