"""`l2rm audit-shards`."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from tyro.conf import Positional, arg

from l2rm.commands.command import Command, Device, Flag, SkipBad


@dataclass(frozen=True, kw_only=True)
class AuditShards(Command):
    """Audit many shards, one after the other or many at once: what l2rm audit finds, in memory that does not grow.

    SHARDS are Parquet files with columns image_embedding and caption_embedding, or WebDataset .tar files of
    KEY.image.npy and KEY.caption.npy, or of pictures and captions (--encoder). Give a folder, or a pattern in quotes.

    DIR/audit/ gets a table a shard, DIR/audit.json the counts, DIR/audit.parquet all rows up to a million. Every shard
    of every stage is a file when it is finished: a stopped audit goes on with --resume. On a cluster, SHARDS and DIR
    are paths that all machines can read.

    Examples:
      l2rm audit-shards 'shards/*.parquet' --out audit
      l2rm audit-shards 'shards/{00000..00099}.tar' --encoder openai/clip-vit-base-patch32 --plan --out audit
      l2rm audit-shards /data/shards --out /data/audit --ray-address auto
    """

    source: Annotated[str, Positional, arg(metavar="SHARDS")]
    out: Annotated[Path, arg(metavar="DIR")]
    """A new folder; with --resume, that of a stopped audit."""
    encoder: Annotated[str | None, arg(metavar="NAME")] = None
    """For pictures: a CLIP or SigLIP of transformers by its folder or its name on the hub."""
    plan: Flag = False
    """Rematch all mismatched captions at once, as l2rm rematch does, instead of suggesting to each its best image."""
    candidates: int = 64
    """With --plan: images that a caption may choose from."""
    keep_threshold: float = 0.5
    """Keep a pair whose match probability is at least this."""
    rematch_threshold: float = 0.5
    """Rematch a pair that is not kept where the confidence in its suggestion is at least this; drop it otherwise."""
    seed: int = 0
    """Draws the negatives that losses are measured against."""
    engine: Literal["ray", "local"] = "ray"
    """ray: as many processes as there are processors, or a cluster. local: this process alone."""
    ray_address: Annotated[str, arg(metavar="ADDRESS")] = "local"
    """local starts Ray here; auto joins the cluster that this machine is part of; or HOST:PORT."""
    processes: int | None = None
    """Processes of a Ray that is started here; without it, one a processor."""
    resume: Flag = False
    """Go on with an audit that was stopped."""
    skip_bad: SkipBad = False
    device: Device = "auto"

    def run(self) -> None:
        from l2rm.scale.engine import opened_engine
        from l2rm.scale.folder import ShardsConfig, is_finished
        from l2rm.scale.pipeline import audit_shards
        from l2rm.summaries import shards_summary
        from l2rm.training.train import pick_device

        names = ("encoder", "plan", "candidates", "keep_threshold", "rematch_threshold", "seed", "skip_bad")
        config = ShardsConfig(**{name: getattr(self, name) for name in names})
        device = str(pick_device(self.device))
        done = self.resume and is_finished(self.out)
        with opened_engine(
            "local" if done else self.engine,
            address=self.ray_address,
            processes=self.processes,
            progress=not self.quiet,
        ) as engine:
            result = audit_shards(self.source, self.out, config, engine, resume=self.resume, device=device)
        print(shards_summary(result))
        told = "finished already" if done else "every pair"
        print(f"{told}: {self.out / 'audit'}, a table a shard")
