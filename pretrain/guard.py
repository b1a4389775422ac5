"""Work that all ranks do together, from joining the process group to an exit code, watched over."""

from __future__ import annotations

import errno
import sys
from collections.abc import Callable

from pretrain import distributed, out_of_memory
from pretrain.distributed import World
from pretrain.errors import EXIT_INTERRUPTED, EXIT_USER_ERROR, UserError
from pretrain.pulse import Pulse
from pretrain.recipe import RunRecipe
from pretrain.watchdog import Watchdog

_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def guarded(recipe: RunRecipe, world: World, work: Callable[[Pulse], int]) -> int:
    """Run `work`, every rank of `world` calling; returns the exit code that it gives, or an error's.

    Where a rank of several fails, all end with its code, without returning, and one line tells why. A stack
    trace is shown for a bug, by the rank that has it.
    """
    pulse = Pulse()
    try:
        distributed.start(world, recipe.train.collective_timeout)
        watchdog = Watchdog.start(recipe, world, pulse)
    except UserError as error:
        print(f"error: rank {world.rank}: {error}", file=sys.stderr)
        return error.exit_code
    try:
        code = work(pulse)
    except UserError as error:
        return watchdog.leave(error, error.exit_code)
    except KeyboardInterrupt:
        return watchdog.leave(UserError("interrupted from the keyboard"), EXIT_INTERRUPTED)
    except OSError as error:
        if error.errno not in _FULL:
            return watchdog.fail(error)
        return watchdog.leave(_no_space(error, recipe), EXIT_USER_ERROR)
    except Exception as error:
        want = out_of_memory.explain(error, recipe, world, pulse.standing)
        return watchdog.leave(want, want.exit_code) if want else watchdog.fail(error)
    watchdog.done()
    distributed.stop()
    return code


def _no_space(error: OSError, recipe: RunRecipe) -> UserError:
    return UserError(
        f"no space left ({error.strerror})",
        where=str(error.filename or recipe.run_dir),
        mend="make room and run the same command again",
    )
