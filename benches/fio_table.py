#!/usr/bin/env python3
"""Run a fio job file against one engine, several repeats, and print one table.

  fio_table.py --label nbd --engine-args "--ioengine=nbd --uri=nbd://127.0.0.1:10809/vol0" --pids 99
  fio_table.py --show a.json b.json       # print saved results again, side by side

Each repeat goes once through the whole job list. CPU is utime+stime of the
--pids processes (all threads) from /proc/PID/stat, plus fio's own from wait4; RSS is VmRSS
right after the run; the peak is the largest VmHWM of one of the --peak-pids processes, counted from
the start of the run. Latency is fio's total latency (submission to completion).
A job's key `prepare` is not fio's: it holds options, separated by blanks, of a run right before the
measured one (to fill a journal or warm a cache), with which they replace the job's own.
"others" is the CPU that neither fio nor the --pids processes used during a run, in cores: a run
with more than --max-others is done again (--tries in all) and the quietest try is kept.
"""
import argparse, atexit, configparser, json, os, resource, shlex, statistics, subprocess, sys, time

TICK = os.sysconf("SC_CLK_TCK")


def load_jobs(path):
    cp = configparser.ConfigParser(interpolation=None, allow_no_value=True, delimiters=("=",),
                                   comment_prefixes=("#", ";"))
    cp.optionxform = str
    with open(path) as f:
        cp.read_file(f)
    glob = dict(cp["global"]) if cp.has_section("global") else {}
    return [(s, {**glob, **dict(cp[s])}) for s in cp.sections() if s != "global"]


def cpu_of(pids):
    total = 0.0
    for p in pids:
        try:
            with open(f"/proc/{p}/stat") as f:
                rest = f.read().rsplit(")", 1)[1].split()
            total += (int(rest[11]) + int(rest[12])) / TICK
        except FileNotFoundError:
            sys.exit(f"server process {p} is gone")
    return total


def rss_of(pids):
    kb = 0
    for p in pids:
        with open(f"/proc/{p}/status") as f:
            for line in f:
                if line.startswith("VmRSS:"):
                    kb += int(line.split()[1])
    return kb / 1024


def reset_peaks(pids):
    """Starts the kernel's count of the highest RSS anew."""
    for p in pids:
        with open(f"/proc/{p}/clear_refs", "w") as f:
            f.write("5")


def highest_peak(pids):
    kb = 0
    for p in pids:
        with open(f"/proc/{p}/status") as f:
            kb = max([kb] + [int(line.split()[1]) for line in f if line.startswith("VmHWM:")])
    return kb / 1024


def machine_cpu():
    with open("/proc/stat") as f:
        v = [int(x) for x in f.readline().split()[1:9]]
    # user nice system idle iowait irq softirq steal
    return {"busy": (v[0] + v[1] + v[2] + v[5] + v[6]) / TICK, "steal": v[7] / TICK}


def disk_io():
    """Bytes read, bytes written and flushes of the machine's disks so far."""
    r = w = f = 0
    for d in os.listdir("/sys/block"):
        if d.startswith(("vd", "sd", "nvme", "xvd")):
            v = [int(x) for x in open(f"/sys/block/{d}/stat").read().split()]
            r, w, f = r + v[2] * 512, w + v[6] * 512, f + (v[15] if len(v) > 15 else 0)
    return r, w, f


def side(d):
    if not d or not d.get("total_ios"):
        return None
    lat = d.get("lat_ns", {})
    pct = lat.get("percentile") or d.get("clat_ns", {}).get("percentile") or {}
    us = lambda k: pct.get(k, 0) / 1000.0
    return {"iops": d["iops"], "mbps": d["bw_bytes"] / 1e6, "ios": d["total_ios"],
            "p50": us("50.000000"), "p99": us("99.000000"), "p999": us("99.900000"),
            "mean": lat.get("mean", 0) / 1000.0}


def renice(pids, value):
    for p in pids:
        for t in os.listdir(f"/proc/{p}/task"):
            try:
                os.setpriority(os.PRIO_PROCESS, int(t), value)
            except ProcessLookupError:
                pass


def quiet(limit, most_wait):
    """Wait until the machine does little (a second at a time); False if it never did."""
    end = time.time() + most_wait
    while True:
        a = machine_cpu()
        time.sleep(1.0)
        if machine_cpu()["busy"] - a["busy"] <= limit:
            return True
        if time.time() > end:
            return False


def command(name, opts, engine_args, fio):
    opts, cmd = dict(opts), [fio, f"--name={name}"]
    # the engine decides which other options exist, so it goes first
    if "ioengine" in opts:
        cmd.append(f"--ioengine={opts.pop('ioengine')}")
    cmd += [f"--{k}" if v is None else f"--{k}={v}" for k, v in opts.items()]
    return cmd + engine_args + ["--lat_percentiles=1", "--clat_percentiles=0",
                                "--percentile_list=50:99:99.9", "--output-format=json"]


def prepare(name, opts, text, engine_args, fio):
    """Runs what the job's key `prepare` says, to its end; True if that went well."""
    own = {k: v for k, v in opts.items() if k not in ("time_based", "runtime")}
    own.update(pair.split("=", 1) for pair in text.split())
    cmd = command(f"{name}-prepare", own, engine_args, fio)
    p = subprocess.run(cmd, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    if p.returncode != 0:
        sys.stderr.write(f"FAILED: {shlex.join(cmd)}\n{p.stderr[-2000:]}\n")
    return p.returncode == 0


def one_run(name, opts, engine_args, runtime, pids, peak_pids, fio, nice=0):
    opts = dict(opts)
    first = opts.pop("prepare", None)
    if runtime:
        opts["runtime"] = str(runtime)
    if first and not prepare(name, opts, first, engine_args, fio):
        return None
    cmd = command(name, opts, engine_args, fio)
    reset_peaks(peak_pids)
    c0, m0, u0 = cpu_of(pids), machine_cpu(), resource.getrusage(resource.RUSAGE_CHILDREN)
    d0, t0 = disk_io(), time.time()
    p = subprocess.run(cmd, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
                       preexec_fn=(lambda: os.nice(nice)) if nice else None)
    wall = time.time() - t0
    c1, m1, u1 = cpu_of(pids), machine_cpu(), resource.getrusage(resource.RUSAGE_CHILDREN)
    d1, rss = disk_io(), rss_of(pids)
    if p.returncode != 0:
        sys.stderr.write(f"FAILED: {shlex.join(cmd)}\n{p.stdout[-2000:]}\n{p.stderr[-2000:]}\n")
        return None
    j = json.loads(p.stdout[p.stdout.index("{"):])["jobs"][0]
    if j.get("error"):
        sys.stderr.write(f"fio error {j['error']} in {name}\n")
        return None
    r, w = side(j["read"]), side(j["write"])
    s = j.get("sync", {})
    out = {"job": name, "wall": wall, "read": r, "write": w,
           "iops": sum(x["iops"] for x in (r, w) if x), "mbps": sum(x["mbps"] for x in (r, w) if x),
           "ios": sum(x["ios"] for x in (r, w) if x),
           "cpu_srv": c1 - c0,
           "cpu_fio": (u1.ru_utime + u1.ru_stime) - (u0.ru_utime + u0.ru_stime),
           "busy_cores": (m1["busy"] - m0["busy"]) / wall,
           "steal_pct": 100 * (m1["steal"] - m0["steal"]) / wall / os.cpu_count(),
           "rss_mib": rss, "peak_mib": highest_peak(peak_pids), "disk_read": d1[0] - d0[0], "disk_written": d1[1] - d0[1], "disk_flushes": d1[2] - d0[2]}
    out["others"] = max(0.0, out["busy_cores"] - (out["cpu_srv"] + out["cpu_fio"]) / wall)
    if s.get("total_ios"):
        pc = s["lat_ns"].get("percentile", {})
        out["sync"] = {k: pc.get(q, 0) / 1000.0 for k, q in
                       (("p50", "50.000000"), ("p99", "99.000000"), ("p999", "99.900000"))}
        out["sync"]["mean"] = s["lat_ns"].get("mean", 0) / 1000
    return out


def med(v):
    return statistics.median(v)


def n(x):
    return f"{x:,.0f}" if x >= 100 else (f"{x:.1f}" if x >= 10 else f"{x:.2f}")


def lat_cell(runs, key):
    cells = []
    for s in ("read", "write"):
        v = [r[s][key] for r in runs if r.get(s)]
        if v:
            cells.append(n(med(v)))
    v = [r["sync"][key] for r in runs if r.get("sync")]
    if v:
        cells.append("sync " + n(med(v)))
    return " / ".join(cells)


def disk_cell(runs):
    v = [(r["disk_written"] / 1024 / r["write"]["ios"], r["disk_flushes"] / r["write"]["ios"])
         for r in runs if r.get("write") and "disk_written" in r]
    return f"{med([x for x, _ in v]):.1f}, {med([y for _, y in v]):.2f}" if v else ""


def table(res):
    times = sorted({r["repeat"] for r in res["runs"]})
    lines = [f"**{res['label']}** ({len(times)} x {res['runtime'] or 'job file'} s, median; "
             f"latency in us, read / write where mixed)", "",
             "| job | IOPS | min-max | MB/s | p50 | p99 | p99.9 | CPU s/1000 IO (server + fio) | busy cores (of it others) | RSS MiB | disk KiB written, flushes per write |",
             "|---|--:|--:|--:|--:|--:|--:|--:|--:|--:|--:|"]
    order = []
    for r in res["runs"]:
        if r["job"] not in order:
            order.append(r["job"])
    for job in order:
        rs = [r for r in res["runs"] if r["job"] == job]
        io = [r["iops"] for r in rs]
        srv = med([1000 * r["cpu_srv"] / max(r["ios"], 1) for r in rs])
        fio = med([1000 * r["cpu_fio"] / max(r["ios"], 1) for r in rs])
        tot = med([1000 * (r["cpu_fio"] + r["cpu_srv"]) / max(r["ios"], 1) for r in rs])
        lines.append(f"| {job} | {n(med(io))} | {n(min(io))}-{n(max(io))} | {n(med([r['mbps'] for r in rs]))} "
                     f"| {lat_cell(rs, 'p50')} | {lat_cell(rs, 'p99')} | {lat_cell(rs, 'p999')} "
                     f"| {tot:.3f} ({srv:.3f} + {fio:.3f}) | {med([r['busy_cores'] for r in rs]):.2f} "
                     f"({med([r['others'] for r in rs]):.2f}) "
                     f"| {n(max(r['rss_mib'] for r in rs))} | {disk_cell(rs)} |")
    st = max((r["steal_pct"] for r in res["runs"]), default=0)
    ot = max((r["others"] for r in res["runs"]), default=0)
    lines += ["", f"Worst run: CPU steal {st:.1f} %, other processes {ot:.2f} cores."]
    return "\n".join(lines)


def main():
    ap = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    here = os.path.dirname(os.path.abspath(__file__))
    ap.add_argument("--engine-args", default="", help="fio options that name the engine and its target")
    ap.add_argument("--jobs", default=os.path.join(here, "jobs.fio"))
    ap.add_argument("--only", default="", help="comma list of job names")
    ap.add_argument("--repeat", type=int, default=3)
    ap.add_argument("--runtime", type=int, default=0, help="seconds per run; 0: what the job file says")
    ap.add_argument("--pids", default="", help="comma list of server pids to account CPU and RSS of")
    ap.add_argument("--peak-pids", default="", help="comma list of those whose highest peak RSS is kept")
    ap.add_argument("--label", default="run")
    ap.add_argument("--out", default="", help="write the results here as JSON")
    ap.add_argument("--append", action="store_true", help="add to the runs that --out already holds")
    ap.add_argument("--max-others", type=float, default=0.3, help="cores of other work above which a run is repeated")
    ap.add_argument("--tries", type=int, default=2)
    ap.add_argument("--quiet-wait", type=float, default=20, help="seconds to wait for a quiet machine before a run")
    ap.add_argument("--nice", type=int, default=0, help="run fio and the servers at this niceness (needs root below 0)")
    ap.add_argument("--fio", default="fio")
    ap.add_argument("--show", nargs="*", help="print saved result files and exit")
    a = ap.parse_args()
    if a.show:
        for f in a.show:
            print(table(json.load(open(f))), "\n")
        return
    pids, peak_pids = ([int(x) for x in text.replace(" ", ",").split(",") if x]
                       for text in (a.pids, a.peak_pids))
    only = {x for x in a.only.split(",") if x}
    jobs = [(k, o) for k, o in load_jobs(a.jobs) if not only or k in only]
    if only - {k for k, _ in jobs}:
        sys.exit(f"no such job: {only - {k for k, _ in jobs}}")
    runs, failed = [], 0
    res = {"label": a.label, "engine_args": a.engine_args, "repeats": a.repeat, "runtime": a.runtime,
           "when": time.strftime("%Y-%m-%d %H:%M:%S"), "runs": runs}
    if a.append and a.out and os.path.exists(a.out):
        runs += json.load(open(a.out))["runs"]
    first = 1 + max((r["repeat"] for r in runs), default=-1)
    if a.nice:
        renice(pids, a.nice)
        atexit.register(renice, pids, 0)
    for rep in range(first, first + a.repeat):
        for name, opts in jobs:
            r = None
            for _ in range(a.tries):
                quiet(0.3, a.quiet_wait)
                t = one_run(name, opts, shlex.split(a.engine_args), a.runtime, pids, peak_pids,
                            a.fio, a.nice)
                if t and (r is None or t["others"] < r["others"]):
                    r = t
                if r and r["others"] <= a.max_others:
                    break
            if r is None:
                failed += 1
                continue
            r["repeat"] = rep
            runs.append(r)
            sys.stderr.write(f"{a.label} #{rep} {name}: {n(r['iops'])} IOPS, busy {r['busy_cores']:.2f}, others {r['others']:.2f}\n")
            if a.out:
                with open(a.out, "w") as f:
                    json.dump(res, f, indent=1)
    print(table(res))
    if failed:
        sys.exit(f"{failed} runs failed")


if __name__ == "__main__":
    main()
