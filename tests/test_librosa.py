"""librosa with this solver inside, against librosa as it is."""

import librosa
import numpy as np
import pytest

import jaxnnls

RATE = 8000
TRANSFORM = {"sr": RATE, "n_fft": 256, "hop_length": 128}
INVERSE = librosa.feature.inverse


@pytest.fixture(scope="module")
def mel():
    """Two channels of decaying notes, as a mel spectrogram of power, shape (2, 24, 20), float32."""
    rng = np.random.default_rng(0)
    t = np.arange(2432) / RATE
    pitch = np.array([[220.0], [330.0]])
    signal = sum(np.sin(2 * np.pi * k * pitch * t) * np.exp(-3 * k * t) / k for k in range(1, 12))
    signal = (signal + 1e-3 * rng.standard_normal(signal.shape)).astype("f4")
    return librosa.feature.melspectrogram(y=signal, n_mels=24, **TRANSFORM)


def misfit(spectrum, mel):
    """The relative residual of a magnitude spectrum."""
    basis = librosa.filters.mel(sr=RATE, n_fft=256, n_mels=24, dtype=mel.dtype).astype(float)
    return np.linalg.norm(basis @ spectrum.astype(float) ** 2 - mel) / np.linalg.norm(mel)


@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_mel_to_stft(mel, dtype):
    mel = mel.astype(dtype)
    theirs = INVERSE.mel_to_stft(mel, sr=RATE, n_fft=256)
    with jaxnnls.in_librosa():
        ours = INVERSE.mel_to_stft(mel, sr=RATE, n_fft=256)
        alone = [INVERSE.mel_to_stft(channel, sr=RATE, n_fft=256) for channel in mel]
    assert (type(ours), ours.shape, ours.dtype) == (type(theirs), theirs.shape, theirs.dtype)
    assert ours.flags.writeable
    assert misfit(ours, mel) <= min(misfit(theirs, mel), {"f4": 1e-6, "f8": 1e-10}[dtype])
    np.testing.assert_allclose(ours, np.stack(alone), rtol=0, atol=1e-5 * ours.max())


def test_audio(mel):
    mfcc = librosa.feature.mfcc(S=librosa.power_to_db(mel), n_mfcc=24)
    for inverse, data, options in ((INVERSE.mel_to_audio, mel, {}), (INVERSE.mfcc_to_audio, mfcc, {"n_mels": 24})):
        options = {**options, **TRANSFORM, "n_iter": 2}
        theirs = inverse(data, **options)
        with jaxnnls.in_librosa():
            ours = inverse(data, **options)
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype)
        assert np.all(np.isfinite(ours)) and np.any(ours)


def test_options_reach_the_solver_and_librosa_is_left_as_it_was(mel):
    before = librosa.util.nnls
    basis = librosa.filters.mel(sr=RATE, n_fft=256, n_mels=24)
    with jaxnnls.in_librosa(ridge=1.0):
        damped = librosa.util.nnls(basis, mel[0])
        with pytest.raises(TypeError, match="factr"):
            librosa.util.nnls(basis, mel[0], factr=1e7)
        assert INVERSE.nnls is librosa.util.nnls is not before
    np.testing.assert_allclose(damped, jaxnnls.nnls(basis, mel[0], ridge=1.0), rtol=0, atol=1e-5 * damped.max())
    assert librosa.util.nnls is before and INVERSE.nnls is before
    with pytest.raises(TypeError, match="bogus"), jaxnnls.in_librosa(bogus=1):
        raise AssertionError("it has to be told before librosa is changed")


def test_integers_are_solved_in_float64():
    A, b = np.array([[1, 2], [3, 4]]), np.array([5, 6])
    expected = librosa.util.nnls(A, b)
    with jaxnnls.in_librosa():
        x = librosa.util.nnls(A, b)
    assert x.dtype == np.float64
    np.testing.assert_allclose(x, expected, atol=1e-3)
