"What every test starts from."
import pytest


@pytest.fixture(scope='session', autouse=True)
def bare():
    "No data or weights of this machine, for fixtures of wide scope too"
    with pytest.MonkeyPatch.context() as m:
        for name in ('NVS_DATA', 'NVS_VGG16'): m.delenv(name, raising=False)
        m.setenv('TQDM_DISABLE', '1')  # a bar must not get into what is compared, however slow the machine
        yield
