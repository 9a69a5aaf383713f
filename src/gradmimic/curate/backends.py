"""Where a plan runs: DuckDB in this process, or Spark.

    expression  →  connection.compile  →  the engine's own SQL      both run the same expressions

What differs between the two is here and nowhere else: how tables come in, what ids are grouped by,
and how a sorted result becomes one Parquet file.

DuckDB keeps what does not fit its memory limit in a folder that is removed afterwards. Results are
written by COPY: it runs out of core, which fetching does not.
"""

import os
import re
import shutil
import tempfile
import uuid
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import pyarrow as pa
import pyarrow.parquet as pq

from gradmimic.atomic import temporary_name
from gradmimic.curate.rows import FileRows
from gradmimic.errors import ConfigError, DataError
from gradmimic.extras import import_extra

if TYPE_CHECKING:
    import ibis.expr.types as ir

# What the libraries say of each other, which whoever turns warnings into errors cannot help.
_OF_DUCKDB = "fetch_arrow_table"
_OF_SPARK = "PySpark does not yet fully support pandas"
_GLOB = re.compile(r"[*?\[\]{}\\]")


class Engine(Protocol):
    """Runs Ibis expressions over tables that it was given.

    Attributes:
        packs: whether it has a type for ids of 128 bits.
    """

    packs: bool

    def parts(self, paths: Sequence[Path]) -> "ir.Table":
        """Return the rows of Parquet files."""

    def urls(self, urls: Sequence[str]) -> "ir.Table":
        """Return the rows of Parquet files that lie elsewhere."""

    def table(self, table: pa.Table) -> "ir.Table":
        """Return the rows of a table in memory."""

    def packed(self, sample_id: "ir.Column") -> "ir.Column":
        """Return ids as 128 bits; null where they are not 32 lower-case hexadecimal digits."""

    def unpacked(self, key: "ir.Column") -> "ir.Column":
        """Return ids as they were, packed or not."""

    def fetch(self, expression: "ir.Table") -> pa.Table:
        """Return the result, in its order."""

    def store(self, expression: "ir.Table") -> "ir.Table":
        """Compute a result once, to be used several times."""

    def write(self, expression: "ir.Table", path: Path) -> None:
        """Write a sorted selection as one Parquet file."""


@contextmanager
def connect(
    backend: Any, memory_limit: str | None, temp_folder: str | os.PathLike[str] | None
) -> Iterator[Engine]:
    """Open an engine, and leave nothing of it behind.

    Args:
        backend: None for DuckDB; a Spark master's URL; or a ``SparkSession``.
        memory_limit: of DuckDB, e.g. ``"2GB"``; None means 80 % of the machine's.
        temp_folder: where it may keep what does not fit; None means the system's.

    Raises:
        ConfigError: there is no such backend, or it does not take these options.
        DataError: there is no such folder.
        MissingExtraError: PySpark is not installed.
    """
    if backend is None:
        with _ignoring(_OF_DUCKDB), _duckdb(memory_limit, temp_folder) as engine:
            yield engine
        return
    if memory_limit is not None or temp_folder is not None:
        raise ConfigError(
            "memory_limit and temp_folder are DuckDB's, but backend= names Spark. Set "
            "spark.driver.memory, spark.executor.memory and spark.local.dir where Spark starts."
        )
    with _ignoring(_OF_SPARK), _spark(backend) as engine:
        yield engine


class DuckDB:
    """DuckDB in this process, through Ibis.

    Args:
        connection: Ibis's.
    """

    packs = True

    def __init__(self, connection: Any) -> None:
        self._connection = connection

    def parts(self, paths: Sequence[Path]) -> "ir.Table":
        """Return the rows of Parquet files."""
        literal = [_literally(str(path)) for path in paths]
        with _understood():
            return self._connection.read_parquet(literal)

    def urls(self, urls: Sequence[str]) -> "ir.Table":
        """Return the rows of Parquet files that lie elsewhere."""
        from gradmimic.curate.metadata import urls_of

        # Through fsspec, and not by Ibis, which would install DuckDB's own extension for some.
        raw, found = self._connection.con, []
        for url in urls:
            system, names = urls_of(url)
            protocols = {system.protocol} if isinstance(system.protocol, str) else system.protocol
            if not set(protocols) & set(raw.list_filesystems()):
                raw.register_filesystem(system)
            found += [_literally(name) for name in names]
        view = _name()
        with _understood():
            raw.read_parquet(found).create_view(view)
            return self._connection.table(view)

    def table(self, table: pa.Table) -> "ir.Table":
        """Return the rows of a table in memory."""
        with _understood():
            return self._connection.create_table(_name(), table, temp=True)

    def packed(self, sample_id: "ir.Column") -> "ir.Column":
        """Return ids as 128 bits, which group twice as fast as strings.

        Not by CAST(sample_id AS UUID): that takes three times as long.
        """
        import ibis

        is_hex = (sample_id.length() == 32) & (sample_id.lower() == sample_id)
        bits = _unhex()(sample_id).cast("uuid")
        return ibis.cases((is_hex, _try()(bits)))

    def unpacked(self, key: "ir.Column") -> "ir.Column":
        """Return ids as they were, packed or not."""
        return key.cast("string").replace("-", "") if key.type().is_uuid() else key

    def fetch(self, expression: "ir.Table") -> pa.Table:
        """Return the result, in its order."""
        with _understood():
            return self._connection.to_pyarrow(expression)

    def store(self, expression: "ir.Table") -> "ir.Table":
        """Compute a result once, to be used several times."""
        with _understood():
            return self._connection.create_table(_name(), expression, temp=True)

    def write(self, expression: "ir.Table", path: Path) -> None:
        """Write a sorted selection as one Parquet file."""

        # Not Ibis's to_parquet: it formats the path into the statement.
        def copy(temporary: Path) -> None:
            with _understood():
                query = self._connection.compile(expression)
                self._connection.con.sql(query).write_parquet(str(temporary))

        _write_whole(path, copy)


class Spark:
    """A Spark session, through Ibis.

    Args:
        connection: Ibis's.
        session: Spark's.
    """

    packs = False

    def __init__(self, connection: Any, session: Any) -> None:
        self._connection = connection
        self._session = session
        self._views: list[str] = []
        self._stored: list[Any] = []

    def parts(self, paths: Sequence[Path]) -> "ir.Table":
        """Return the rows of Parquet files."""
        literal = [_GLOB.sub(lambda found: f"\\{found[0]}", str(path.resolve())) for path in paths]
        return self._view(self._session.read.parquet(*(f"file:{path}" for path in literal)))

    def urls(self, urls: Sequence[str]) -> "ir.Table":
        """Return the rows of Parquet files that lie elsewhere: Spark knows many places itself."""
        return self._view(self._session.read.parquet(*urls))

    def table(self, table: pa.Table) -> "ir.Table":
        """Return the rows of a table in memory."""
        return self._view(self._session.createDataFrame(table))

    def packed(self, sample_id: "ir.Column") -> "ir.Column":
        """Return ids as they are: Spark has no type of 128 bits."""
        return sample_id

    def unpacked(self, key: "ir.Column") -> "ir.Column":
        """Return ids as they are."""
        return key

    def fetch(self, expression: "ir.Table") -> pa.Table:
        """Return the result, in its order."""
        return self._frame(expression).toArrow()

    def store(self, expression: "ir.Table") -> "ir.Table":
        """Compute a result once, to be used several times."""
        stored = self._frame(expression).persist()
        self._stored.append(stored)
        return self._view(stored)

    def write(self, expression: "ir.Table", path: Path) -> None:
        """Let the executors write sorted parts next to the path, then join them here."""
        folder = path.with_name(f".{path.name}.parts").resolve()

        def join(temporary: Path) -> None:
            self._frame(expression).write.mode("overwrite").parquet(f"file:{folder}")
            parts = sorted(folder.glob("part-*.parquet"))
            with pq.ParquetWriter(temporary, pq.read_schema(parts[0])) as writer:
                for part in parts:
                    for batch in pq.ParquetFile(part).iter_batches():
                        writer.write_batch(batch)

        try:
            _write_whole(path, join)
        finally:
            shutil.rmtree(folder, ignore_errors=True)

    def close(self) -> None:
        """Forget the tables of this plan."""
        for stored in self._stored:
            stored.unpersist()
        for view in self._views:
            self._session.catalog.dropTempView(view)

    def _frame(self, expression: "ir.Table") -> Any:
        """Return Spark's own form of an expression."""
        return self._session.sql(self._connection.compile(expression))

    def _view(self, frame: Any) -> "ir.Table":
        """Give a data frame a name that expressions can use."""
        name = _name()
        frame.createOrReplaceTempView(name)
        self._views.append(name)
        return self._connection.table(name)


@contextmanager
def _duckdb(
    memory_limit: str | None, temp_folder: str | os.PathLike[str] | None
) -> Iterator[DuckDB]:
    """Open DuckDB with a folder of its own for what does not fit memory."""
    import duckdb
    import ibis

    try:
        folder = tempfile.mkdtemp(prefix="gradmimic-", dir=temp_folder)
    except OSError as error:
        raise DataError(
            f"cannot make a temporary folder in {temp_folder}: {error}. Pass a temp_folder that "
            "exists, on a disk with room."
        ) from error
    try:
        options = {"temp_directory": folder, "autoinstall_known_extensions": False}
        if memory_limit is not None:
            options["memory_limit"] = memory_limit
        try:
            connection = ibis.duckdb.connect(**options)
        except duckdb.Error as error:
            raise ConfigError(
                f"DuckDB does not take memory_limit={memory_limit!r}: {_first_line(error)}. Pass a "
                "size such as '2GB'."
            ) from error
        try:
            yield DuckDB(connection)
        finally:
            connection.disconnect()
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@contextmanager
def _spark(backend: Any) -> Iterator[Spark]:
    """Use a session, or start one that is stopped afterwards."""
    import ibis

    sql = import_extra("pyspark.sql", "spark")
    session, started = backend, False
    if isinstance(backend, str):
        if not re.match(r"local(\[.*\])?$|spark://|yarn$|k8s://", backend):
            raise ConfigError(
                f"there is no backend {backend!r}. Leave it out for DuckDB, or pass a Spark "
                "master's URL such as 'spark://host:7077' or 'local[2]', or a SparkSession."
            )
        started = sql.SparkSession.getActiveSession() is None
        builder = sql.SparkSession.builder.master(backend).appName("gradmimic select")
        builder = builder.config("spark.ui.enabled", "false").config("spark.log.level", "ERROR")
        builder = builder.config("spark.ui.showConsoleProgress", "false")
        session = builder.getOrCreate()
    elif not hasattr(backend, "createDataFrame"):
        raise ConfigError(
            f"backend must be None, a Spark master's URL or a SparkSession, got a "
            f"{type(backend).__name__}."
        )
    # Ibis changes these for good; a session that the user passed keeps its own.
    changed = ("spark.sql.session.timeZone", "spark.sql.mapKeyDedupPolicy")
    before = {name: session.conf.get(name) for name in changed}
    try:
        engine = Spark(ibis.pyspark.connect(session), session)
        try:
            yield engine
        except sql.utils.CapturedException as error:
            raise DataError(f"Spark gave up: {_first_line(error)}. Its log says more.") from error
        finally:
            engine.close()
    finally:
        if started:
            session.stop()
        else:
            for name, value in before.items():
                session.conf.set(name, value)


@contextmanager
def _ignoring(message: str) -> Iterator[None]:
    """Keep a library's warning of another library from the user."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message)
        yield


def _write_whole(path: Path, write: Callable[[Path], None]) -> None:
    """Write a file under another name, check that it is sorted, and only then rename it."""
    temporary = temporary_name(path)
    try:
        write(temporary)
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        for _ in FileRows(temporary).batches(["sample_id"]):
            pass  # refuses rows that are out of order
        temporary.replace(path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError | DataError):
            raise DataError(
                f"cannot write {path}: {_first_line(error)}. Nothing was left under that name: "
                "make room or choose another folder, then select again."
            ) from error
        raise


@contextmanager
def _understood() -> Iterator[None]:
    """Turn DuckDB's errors into ours."""
    import duckdb

    try:
        yield
    except duckdb.OutOfMemoryException as error:
        raise DataError(
            f"DuckDB ran out of memory or of room to swap: {_first_line(error)}. Raise "
            "memory_limit, or pass a temp_folder on a disk with more room."
        ) from error
    except duckdb.Error as error:
        raise DataError(f"DuckDB gave up: {_first_line(error)}") from error


def _first_line(error: BaseException) -> str:
    """Return what an error says, without its advice."""
    return str(error).strip().split("\n")[0].rstrip(".")


def _name() -> str:
    """Return a name that no table has."""
    return f"gradmimic_{uuid.uuid4().hex}"


def _literally(path: str) -> str:
    """Return a pattern of DuckDB's for one path: a bracketed character stands for itself."""
    return _GLOB.sub(lambda found: f"[{found[0]}]", path)


def _unhex() -> Any:
    """Return the engine's function from hexadecimal digits to bytes."""
    import ibis

    @ibis.udf.scalar.builtin  # type: ignore[untyped-decorator]
    def unhex(digits: str) -> bytes: ...  # type: ignore[empty-body]

    return unhex


def _try() -> Any:
    """Return the engine's function that turns errors into null."""
    import ibis

    @ibis.udf.scalar.builtin(name="try", signature=(("uuid",), "uuid"))
    def attempt(value): ...  # type: ignore[no-untyped-def]

    return attempt
